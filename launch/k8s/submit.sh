#!/usr/bin/env bash
# Trains on GPU nodes of a Kubernetes cluster that has JobSet (0.8 or newer), with one process for each node.
#
#     IMAGE=registry/croc CLAIM=croc launch/k8s/submit.sh [--dry-run] --config=configs/croc_vits16_coco.py \
#         --workdir=/data/runs/coco --config.data.sources=coco:/data/coco
#
# All that follows goes to launch/pretrain.py. --dry-run prints the JobSet that would be created, and does nothing.
# IMAGE holds this repository as its working directory, installed with the JAX of the accelerator. CLAIM is a volume that
# all nodes can write to (ReadWriteMany). A drained or lost node, or another end with 75, starts all processes again as
# often as it takes; a crash does so MAX_RESTARTS times. The run goes on from its last checkpoint.
set -euo pipefail

# All of these can be set in the environment.
JOB_NAME=${JOB_NAME:-croc}
NAMESPACE=${NAMESPACE:-default}
IMAGE=${IMAGE:-}
CLAIM=${CLAIM:-}
MOUNT=${MOUNT:-/data} # where the pods have the volume
NODES=${NODES:-1}
DEVICE=${DEVICE:-nvidia.com/gpu} # or amd.com/gpu
DEVICES_PER_NODE=${DEVICES_PER_NODE:-8}
CPUS_PER_NODE=${CPUS_PER_NODE:-64}
MEMORY_PER_NODE=${MEMORY_PER_NODE:-256Gi}
SHARED_MEMORY=${SHARED_MEMORY:-32Gi} # of that; the readers of images hand batches over in it
GRACE_SECONDS=${GRACE_SECONDS:-120} # from the notice to the end; the last step and a save must fit
MAX_RESTARTS=${MAX_RESTARTS:-10}
PROGRAM=${PROGRAM:-launch/pretrain.py}

dry_run='' workdir='' before=''
for flag in "$@"; do
    shift
    # Wherever it stands: what only looks must never submit.
    if [[ $flag == --dry[-_]run ]]; then dry_run=yes; else set -- "$@" "$flag"; fi
    if [[ $flag =~ ^--?workdir=(.*)$ ]]; then workdir=${BASH_REMATCH[1]}; fi
    if [[ $before =~ ^--?workdir$ ]]; then workdir=$flag; fi
    before=$flag
done
if (($# == 0)); then
    echo "error: no flags for $PROGRAM: add --config=configs/NAME.py --workdir=$MOUNT/DIR" >&2
    exit 1
fi
if [[ -z $IMAGE || -z $CLAIM ]]; then
    echo "error: set IMAGE to the container image, and CLAIM to the name of a volume claim that all nodes can write to" >&2
    exit 1
fi
if [[ $workdir && $workdir != "$MOUNT"/?* ]]; then
    echo "error: --workdir=$workdir would be lost with the pod: choose a folder of the volume, $MOUNT/DIR" >&2
    exit 1
fi

# A text as YAML has it. Kubernetes would put variables in place of $(NAME), and makes one $ of two.
literal() {
    local text=${1//\\/\\\\}
    text=${text//\"/\\\"}
    text=${text//$'\n'/\\n}
    printf '"%s"' "${text//\$/\$\$}"
}

# Each argument as a line of a YAML list.
arguments() {
    local text
    for text in "$@"; do
        printf '                    - %s\n' "$(literal "$text")"
    done
}

jobset() {
    cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: "$JOB_NAME"
  namespace: "$NAMESPACE"
spec:
  # A day to look at what has ended.
  ttlSecondsAfterFinished: 86400
  failurePolicy:
    maxRestarts: $MAX_RESTARTS
    # No process of the last start may be left when the next ones look for each other.
    restartStrategy: BlockingRecreate
    rules:
      # What podFailurePolicy below has found counts as no failure.
      - name: requeue
        action: RestartJobSetAndIgnoreMaxRestarts
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: workers
      replicas: 1
      template:
        spec:
          completionMode: Indexed
          parallelism: $NODES
          completions: $NODES
          # One process alone cannot go on: the job fails, and the JobSet starts all of them again.
          backoffLimit: 0
          podFailurePolicy:
            rules:
              # The run has saved and asks for another start; or SIGUSR1 or SIGTERM came before it could listen; or a node
              # is gone, and what ran on the others has noticed.
              - action: FailJob
                onExitCodes:
                  containerName: train
                  operator: In
                  values: [75, 138, 143]
              # The node was drained or given to a more urgent pod, or Kubernetes knows that it is lost.
              - action: FailJob
                onPodConditions:
                  - type: DisruptionTarget
                    status: "True"
          template:
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: $GRACE_SECONDS
              containers:
                - name: train
                  image: "$IMAGE"
                  env:
                    # How the processes find each other, without rights to ask Kubernetes.
                    - name: JAX_COORDINATOR_ADDRESS
                      value: "$JOB_NAME-workers-0-0.$JOB_NAME:12345"
                    - name: JAX_NUM_PROCESSES
                      value: "$NODES"
                    - name: JAX_PROCESS_ID
                      valueFrom:
                        fieldRef:
                          fieldPath: metadata.annotations['batch.kubernetes.io/job-completion-index']
                  command:
                    - python
                    - $(literal "$PROGRAM")
                  args:
$(arguments "$@")
                  resources:
                    limits:
                      $DEVICE: "$DEVICES_PER_NODE"
                      cpu: "$CPUS_PER_NODE"
                      memory: "$MEMORY_PER_NODE"
                  volumeMounts:
                    - name: data
                      mountPath: "$MOUNT"
                    - name: shared-memory
                      mountPath: /dev/shm
              volumes:
                - name: data
                  persistentVolumeClaim:
                    claimName: "$CLAIM"
                - name: shared-memory
                  emptyDir:
                    medium: Memory
                    sizeLimit: "$SHARED_MEMORY"
YAML
}

if [[ $dry_run ]]; then
    jobset "$@"
else
    jobset "$@" | kubectl create --filename=-
fi
