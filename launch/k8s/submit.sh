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
NODES=${NODES:-1}
DEVICE=${DEVICE:-nvidia.com/gpu} # or amd.com/gpu
DEVICES_PER_NODE=${DEVICES_PER_NODE:-8}
CPUS_PER_NODE=${CPUS_PER_NODE:-64}
MEMORY_PER_NODE=${MEMORY_PER_NODE:-256Gi}
SHARED_MEMORY=${SHARED_MEMORY:-32Gi} # of that; the readers of images hand batches over in it
GRACE_SECONDS=${GRACE_SECONDS:-120} # from the notice to the end; the last step and a save must fit
MAX_RESTARTS=${MAX_RESTARTS:-10}
PROGRAM=${PROGRAM:-launch/pretrain.py}

dry_run=
if [[ ${1:-} == --dry-run ]]; then
    dry_run=yes
    shift
fi
if (($# == 0)); then
    echo "error: no flags for $PROGRAM: add --config=configs/NAME.py --workdir=/data/DIR" >&2
    exit 1
fi
if [[ -z $IMAGE || -z $CLAIM ]]; then
    echo "error: set IMAGE to the container image, and CLAIM to the name of a volume claim that all nodes can write to" >&2
    exit 1
fi

# Each argument as a line of a YAML list.
arguments() {
    local text
    for text in "$@"; do
        text=${text//\\/\\\\}
        printf '                    - "%s"\n' "${text//\"/\\\"}"
    done
}

jobset() {
    cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $JOB_NAME
  namespace: $NAMESPACE
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
              # The run has saved and asks for another start.
              - action: FailJob
                onExitCodes:
                  containerName: train
                  operator: In
                  values: [75]
              # The node was drained, lost, or given to a more urgent pod.
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
                    - "$PROGRAM"
                  args:
$(arguments "$@")
                  resources:
                    limits:
                      $DEVICE: "$DEVICES_PER_NODE"
                      cpu: "$CPUS_PER_NODE"
                      memory: "$MEMORY_PER_NODE"
                  volumeMounts:
                    - name: data
                      mountPath: /data
                    - name: shared-memory
                      mountPath: /dev/shm
              volumes:
                - name: data
                  persistentVolumeClaim:
                    claimName: $CLAIM
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
