#!/usr/bin/env bash
# Trains on GPU nodes of a Kubernetes cluster with JobSet (0.8 or newer), with one process for each node.
#
#     IMAGE=registry/croc CLAIM=croc launch/k8s/submit.sh [--dry-run] --config=configs/croc_vits16_coco.py \
#         --workdir=/data/runs/coco --config.data.sources=coco:/data/coco
#
# All other flags go to launch/pretrain.py. --dry-run prints the JobSet and creates nothing. IMAGE has this repository as its
# working directory, installed with the accelerator's JAX. CLAIM is a volume that all nodes can write (ReadWriteMany), at
# /data. An exit with status 75 and a drained node restart all processes without limit; a crash, up to MAX_RESTARTS times.
set -euo pipefail

submit=(kubectl create --filename=-) flags=()
for flag in "$@"; do
    if [[ $flag == --dry[-_]run ]]; then submit=(cat); else flags+=("$flag"); fi
done
if [[ ${flags[*]} != *--workdir=/data/* ]]; then
    echo "error: add --config=configs/NAME.py --workdir=/data/DIR: elsewhere the run would be lost with its pod" >&2
    exit 1
fi
name=${JOB_NAME:-croc} nodes=${NODES:-1}
# JSON is YAML. Kubernetes replaces $(NAME) by a variable, and $$ by $.
arguments=$(python3 -c 'import json, sys; print(json.dumps([text.replace("$", "$$") for text in sys.argv[1:]]))' "${flags[@]}")

"${submit[@]}" <<EOF
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata: {name: "$name", namespace: "${NAMESPACE:-default}"}
spec:
  ttlSecondsAfterFinished: 86400
  failurePolicy:
    maxRestarts: ${MAX_RESTARTS:-10}
    restartStrategy: BlockingRecreate # all old processes are gone before new ones look for each other
    rules: # what podFailurePolicy catches is no failure
      - {name: requeue, action: RestartJobSetAndIgnoreMaxRestarts, onJobFailureReasons: [PodFailurePolicy]}
  replicatedJobs:
    - name: workers
      replicas: 1
      template:
        spec:
          completionMode: Indexed
          parallelism: $nodes
          completions: $nodes
          backoffLimit: 0 # a process cannot rejoin: the JobSet restarts all of them
          podFailurePolicy:
            rules: # the run asks for a restart, SIGTERM came before it could handle it, or the node was drained
              - {action: FailJob, onExitCodes: {containerName: train, operator: In, values: [75, 143]}}
              - {action: FailJob, onPodConditions: [{type: DisruptionTarget, status: "True"}]}
          template:
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: ${GRACE_SECONDS:-120}
              containers:
                - name: train
                  image: "${IMAGE:?set it to a container image}"
                  command: [python, launch/pretrain.py, "--coordinator_address=$name-workers-0-0.$name:12345",
                            "--num_processes=$nodes", "--process_id=\$(JOB_COMPLETION_INDEX)",
                            --connect_timeout=1800] # images may be pulled for long
                  args: $arguments
                  resources:
                    limits: {${DEVICE:-nvidia.com/gpu}: ${DEVICES_PER_NODE:-8}, cpu: ${CPUS_PER_NODE:-64}, memory: ${MEMORY_PER_NODE:-256Gi}}
                  volumeMounts: [{name: data, mountPath: /data}, {name: shared-memory, mountPath: /dev/shm}]
              volumes:
                - {name: data, persistentVolumeClaim: {claimName: "${CLAIM:?set it to a volume claim}"}}
                - {name: shared-memory, emptyDir: {medium: Memory, sizeLimit: ${SHARED_MEMORY:-32Gi}}} # batches of workers
EOF
