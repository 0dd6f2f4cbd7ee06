"""launch/report.py from the command line."""

from tests.launch.program import run_program
from tests.report.tiny_results import write_linear


def test_a_page_of_two_folders(tmp_path, capsys):
    for name, miou in (("random", 10.0), ("mine", 20.0)):
        write_linear(tmp_path / name / "linear", miou=miou, checkpoint=name, sky=miou)
    page = tmp_path / "pages" / "page.html"
    run_program("report", f"--folder={tmp_path / 'mine'}", f"--folder={tmp_path / 'random'}", f"--output={page}")
    assert str(page) in capsys.readouterr().out and "10.0 → 20.0" in page.read_text(encoding="utf-8")
