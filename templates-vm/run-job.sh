#!/bin/sh
# Runs the job's script in the rank-0 guest, as the job's user, the way a mom
# does: his login shell reads the script's path from its standard input.
#
#   run-job                 Standard input: a line with a number of bytes, that
#                           many bytes of shell text that set the job's
#                           environment, then a line for every signal to pass on.
#   run-job keep            Keeps such a text for later and says where: what is
#                           sent to a terminal would be echoed, and changed.
#   run-job terminal FILE   Runs a kept text's command, or without one a shell,
#                           on the terminal that standard input is.
#
# The text sets VTORQUE_DIRECTORY, VTORQUE_SHELL and VTORQUE_COMMAND as well.
set -u
umask 077

settle() { # TEXT: take over its environment, go where the job starts
    eval "$1"
    directory=$VTORQUE_DIRECTORY shell=$VTORQUE_SHELL command=$VTORQUE_COMMAND
    unset VTORQUE_DIRECTORY VTORQUE_SHELL VTORQUE_COMMAND
    if ! cd -- "$directory" 2>/dev/null; then
        printf 'vtorque: %s does not exist in the guest, the job starts in %s\n' "$directory" "$HOME" >&2
        cd || exit 1
    fi
    [ -x "$shell" ] || shell=/bin/sh
}

case ${1-} in
keep)
    read -r size
    file=$(mktemp /tmp/vtorque.XXXXXXXX) || exit 1
    head -c "$size" >"$file" && printf '%s\n' "$file"
    exit
    ;;
terminal)
    text=$(cat "$2" && printf x)
    rm -f "$2"
    settle "${text%x}"
    [ -n "$command" ] || exec "$shell" -l
    exec "$shell" -l -c "$command"
    ;;
esac

read -r size
text=$(head -c "$size" && printf x)
settle "${text%x}"
# Without a command the text was only to leave its files here.
[ -n "$command" ] || exit 0

pass_on() { # SIGNAL, to all of the job's session but its shell, so that a trap has time to run
    for entry in /proc/[0-9]*/stat; do
        read -r line <"$entry" || continue
        pid=${line%% *}
        # State, parent, group, session, after a name that may hold blanks and brackets.
        set -- "$1" ${line##*) }
        [ "$5" != "$job" ] || [ "$pid" = "$job" ] || kill -s "$1" "$pid"
    done
}

exec 3<&0 </dev/null
# Started in the background it leads no process group yet, so setsid does not fork:
# its process id is the job's session and group.
printf '%s\n' "$command" | setsid "$shell" -l 3<&- &
job=$!
# What this shell says of a job that was killed is not the job's own output.
exec 2>/dev/null
{
    while read -r signal; do
        pass_on "$signal"
    done
    # The end of input: the node's side was killed, and the job goes with it.
    kill -s KILL -- "-$job"
} <&3 3<&- >/dev/null &
control=$!
exec 3<&-
wait "$job"
status=$?
# A mom kills what is left of the job's session when its shell is done.
kill -s KILL -- "-$job"
kill "$control"
exit "$status"
