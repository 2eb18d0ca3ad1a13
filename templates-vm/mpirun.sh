#!/bin/sh
# Calls the mpirun (or mpiexec) that comes behind this one in PATH, with the job's
# node file unless the user says himself where ranks are to run.
own=$(dirname "$0")
PATH=$(printf '%s' "$PATH" | tr ':' '\n' | grep -vxF "$own" | tr '\n' ':')
PATH=${PATH%:}
name=$(basename "$0")
real=$(command -v "$name") || {
    echo "vtorque: there is no $name in this guest" >&2
    exit 127
}
for word in "$@"; do
    case $word in
    -H | -host | --host | -hosts | -hostfile | --hostfile | -machinefile | --machinefile | -f | -default-hostfile | --default-hostfile)
        exec "$real" "$@"
        ;;
    esac
done
[ -n "${PBS_NODEFILE-}" ] && [ -r "$PBS_NODEFILE" ] || exec "$real" "$@"
# Open MPI, MPICH and Intel MPI all know this spelling.
exec "$real" -machinefile "$PBS_NODEFILE" "$@"
