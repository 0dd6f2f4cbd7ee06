"""Launch templates that watch over a run themselves, on TPUs and on this host: when they start it again, and end."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.templates import FLAGS, QUOTED, ROOT, dry, wait_for

# A slice of two hosts, which are folders, where commands really run. A connection is lost before or behind a command,
# as a file says line by line; another one holds the states of the slice, which is ACTIVE otherwise.
GCLOUD = r"""
cd "$STORY"
pop() { head -n 1 "$1" 2> /dev/null && sed -i 1d "$1"; }
case "$*" in
*" create "*) touch there ;;
*" delete "*) rm there ;;
*" describe "*) [[ -e there ]] || exit 1; state=$(pop states); echo "${state:-ACTIVE}" ;;
*)
    fate=$(pop fates)
    [[ $fate != before ]] || exit 255
    for host in 0 1; do
        mkdir -p "$host"
        case "$*" in *" ssh "*) (cd "$host"; HOSTNAME=$host bash -c "${!#/--command=/}") || exit ;; esac
    done
    [[ $fate != behind ]] || exit 255
    ;;
esac
"""
# Instead of Python in the environment of a host: it runs until connections have no more to suffer.
TRAINING = r"""#!/usr/bin/env bash
echo "$PWD: $*" >> "$STORY/starts-$HOSTNAME"
echo "output of $HOSTNAME"
sleep 0.2; while [[ -s $STORY/fates ]]; do sleep 0.05; done
exit "$(sed -n "$(wc -l < "$STORY/starts-$HOSTNAME")p" "$STORY/ends")"
"""


@pytest.fixture
def slice_of_two(desk):
    """Returns what runs the template, with its variables; the story of runs and connections is in files."""
    desk.fake("gcloud", GCLOUD)
    for name in ("sudo", "mountpoint", "tar"):
        desk.fake(name)
    desk.fake("python3", 'case "$*" in *venv*) mkdir -p .venv/bin; ln -s "$STORY/training" .venv/bin/python ;; esac\n')
    (desk.folder / "training").write_text(TRAINING)
    (desk.folder / "training").chmod(0o755)

    def run(ends, *, fates="", states="", **variables):
        for name, words in {"ends": ends, "fates": fates, "states": states}.items():
            (desk.folder / name).write_text("".join(f"{word}\n" for word in words.split()))
        given = {"STORY": str(desk.folder), "LOGS": str(desk.folder / "logs"), "POLL_SECONDS": "0.05"} | variables
        return desk.run("tpu/submit.sh", *FLAGS, **given)

    return run


def starts(desk):
    return [(desk.folder / f"starts-{host}").read_text().splitlines() for host in (0, 1)]


def verbs(calls):
    """What was asked of Google, and of hosts, without the questions for the state of the slice."""
    asked = [call for call in calls if call[0] == "gcloud" and call[4] != "describe"]
    return [call[-1].removeprefix("--command=").split()[0] if call[4] == "ssh" else call[4] for call in asked]


def test_a_dry_run_for_tpus_shows_all_commands(desk):
    shown = dry(desk, "tpu/submit.sh")
    create = "gcloud compute tpus queued-resources create croc --zone=here --node-id=croc "
    assert create + "--accelerator-type=v5litepod-256 --runtime-version=v2-alpha-tpuv5-lite --spot\n" in shown
    calls = [call for call in desk.follow(shown) if call[0] == "gcloud"]
    assert verbs(calls) == ["create", "scp", "exec", "if", "delete"]
    assert all("--ssh-flag=-oServerAliveInterval=30" in call for call in calls[2:4])
    assert "jax[tpu]" in calls[2][-1] and "mount -t nfs 10.0.0.2:/croc /mnt/croc" in calls[2][-1]


def test_a_run_on_tpus_starts_again_after_75_and_after_a_kill(desk, slice_of_two):
    done = slice_of_two("75 137 143 0", RESTARTS="1")
    assert done.returncode == 0, done.stderr
    command = f"{desk.folder}/{{}}/croc: launch/pretrain.py {' '.join(FLAGS)}"
    assert starts(desk) == [[command.format(host)] * 4 for host in (0, 1)]
    assert (desk.folder / "logs" / "croc-1.log").read_text() == "output of 1\n" * 4
    assert verbs(desk.calls())[-1] == "delete" and not (desk.folder / "there").exists()


@pytest.mark.parametrize(("ends", "status", "count"), [("3", 3, 1), ("137 137", 137, 2), ("130", 130, 1)])
def test_an_end_on_tpus_that_asks_for_no_start_ends_the_script(desk, slice_of_two, ends, status, count):
    assert slice_of_two(ends, RESTARTS="1").returncode == status
    assert [len(lines) for lines in starts(desk)] == [count, count] and verbs(desk.calls())[-1] == "delete"


def test_lost_connections_to_a_living_slice_start_nothing_twice(desk, slice_of_two):
    # The copy, then its second try; the start, which all hosts have heard, and again with a copy; two looks.
    done = slice_of_two("0", fates="before fine behind fine fine before behind")
    assert done.returncode == 0, done.stderr
    assert [len(lines) for lines in starts(desk)] == [1, 1]
    assert done.stderr.count("could not be prepared") == 2
    assert verbs(desk.calls())[:6] == ["create", "scp", "scp", "exec", "scp", "exec"]


def test_a_slice_that_can_never_be_prepared_is_given_back(desk, slice_of_two):
    done = slice_of_two("0", fates="before " * 9)
    assert done.returncode == 1 and verbs(desk.calls()) == ["create", *["scp"] * 5, "delete"]


def test_a_slice_that_is_taken_away_is_asked_for_again(desk, slice_of_two):
    # Waiting, there, and gone at the first look at the run.
    done = slice_of_two("75 0", states="PROVISIONING ACTIVE SUSPENDING")
    assert done.returncode == 0 and done.stderr.count("croc was taken away; it is asked for again") == 1
    asked = verbs(desk.calls())
    assert asked[:6] == ["create", "scp", "exec", "delete", "create", "scp"] and asked.count("delete") == 2


def test_a_request_of_that_name_is_left_alone(desk, slice_of_two):
    (desk.folder / "there").touch()
    done = slice_of_two("0")
    assert done.returncode == 1 and "there is a request croc already: choose another JOB_NAME" in done.stderr
    assert verbs(desk.calls()) == [] and (desk.folder / "there").exists()


@pytest.mark.parametrize(("accelerator", "image"), [("v4-512", "tpu-ubuntu2204-base"), ("v6e-256", "v2-alpha-tpuv6e")])
def test_every_generation_has_its_image(desk, accelerator, image):
    shown = dry(desk, "tpu/submit.sh", ACCELERATOR=accelerator, SPOT="", PROJECT="mine")
    assert (
        f"--zone=here --project=mine --node-id=croc --accelerator-type={accelerator} --runtime-version={image}\n"
        in shown
    )


def test_an_unknown_generation_ends_the_script(desk):
    done = desk.run("tpu/submit.sh", *FLAGS, ACCELERATOR="v9-8")
    assert done.returncode == 1 and "ACCELERATOR=v9-8: choose v4-N" in done.stderr and desk.calls() == []


# Ends as the lines of a file say, one a start.
PROGRAM = """
import os, pathlib, signal, sys, time
story = pathlib.Path(sys.argv[1])
first, *rest = story.read_text().split()
story.write_text(" ".join(rest))
pathlib.Path(sys.argv[1] + ".seen").open("a").write(first + "\\n")
if first == "wait":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    story.with_suffix(".ready").touch()
    time.sleep(60)
elif first == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(int(first))
"""


@pytest.fixture
def story(desk):
    (desk.folder / "program.py").write_text(PROGRAM)
    return desk.folder / "story"


def local(desk):
    return {"PROGRAM": str(desk.folder / "program.py"), "PYTHON": sys.executable}


@pytest.mark.parametrize(
    ("ends", "status"),
    [
        ("75 143 138 75 0", 0),
        ("killed 75 0", 0),
        ("3", 3),
        ("130", 130),
        ("killed killed 9", 137),
        ("killed 75 killed 0", 137),
    ],
)
def test_a_local_run_starts_again_after_75_and_once_after_a_kill(desk, story, ends, status):
    story.write_text(ends)
    done = desk.run("local/run.sh", str(story), RESTARTS="1", **local(desk))
    starts = 1 + done.stderr.count("starts again")
    assert done.returncode == status and Path(f"{story}.seen").read_text().split() == ends.split()[:starts]
    assert (story.read_text() == "") == ("killed killed" not in ends and "75 killed" not in ends)


def test_a_local_dry_run_shows_the_command(desk):
    assert dry(desk, "local/run.sh") == f"python launch/pretrain.py {QUOTED}\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_local_script_lets_the_run_save(desk, story, number):
    story.write_text("wait 0")
    command = ["launch/local/run.sh", str(story)]
    script = subprocess.Popen(command, cwd=ROOT, env=desk.environment(**local(desk)))
    wait_for(story.with_suffix(".ready").exists)
    script.send_signal(number)
    assert script.wait(30) == 75 and story.read_text() == "0"
