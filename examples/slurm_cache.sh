#!/bin/bash
# Stage one as a SLURM array: every task makes its own shards of one cache, on a GPU of its own.
#
#   sbatch --array=0-19 examples/slurm_cache.sh PHOTOS CACHE [options of dtkd teacher-cache]
#
# Task N makes the shards N * SHARDS_PER_TASK and following. How many there are is said by every run in its first line;
# a task behind the last one ends with an error that names it. The last task to end writes the manifest. CACHE is a
# folder that all nodes see, or a URL such as s3://bucket/cache. A task that failed or was cut off is submitted again
# (--array=7): it goes on where it stopped.
#SBATCH --job-name=dtkd-cache
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
# The last line: 120 s before its time is over this script, not the program (B:), gets SIGUSR1.
set -u

: "${SHARDS_PER_TASK:=16}"
first=$((SLURM_ARRAY_TASK_ID * SHARDS_PER_TASK))
last=$((first + SHARDS_PER_TASK - 1))

# No srun: signals must reach the program itself. In the background, since bash runs no trap while it waits for a
# program in the foreground.
dtkd teacher-cache "$@" --shards "$first-$last" &
program=$!

requeue() {
    # SIGTERM is a Ctrl-C for dtkd: finished samples are kept and the lease is given back.
    kill -TERM "$program" 2>/dev/null
    wait "$program"
    echo "time is nearly over: task $SLURM_ARRAY_TASK_ID goes back into the queue"
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
    exit 0
}
trap requeue USR1
trap 'kill -TERM "$program" 2>/dev/null' TERM  # scancel, or a preempted job

wait "$program"
code=$?
if [ "$code" -gt 128 ]; then # a trap cut the wait short, or the program was killed: its own exit code counts
    wait "$program"
    code=$?
fi
exit "$code"
