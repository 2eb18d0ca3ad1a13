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
    # Of these a mom says nothing; the job's user may.
    unset MAIL SHLVL SSH_CLIENT SSH_CONNECTION SSH_ORIGINAL_COMMAND SSH_TTY
    eval "$1"
    directory=$VTORQUE_DIRECTORY shell=$VTORQUE_SHELL command=$VTORQUE_COMMAND
    unset VTORQUE_DIRECTORY VTORQUE_SHELL VTORQUE_COMMAND
    if ! cd -- "$directory" 2>/dev/null; then
        printf 'vtorque: %s does not exist in the guest, the job starts in %s\n' "$directory" "$HOME" >&2
        cd || exit 1
    fi
    unset OLDPWD
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

tell() { # SIGNAL [SPARED]: to all of the job's session but one process
    for entry in /proc/[0-9]*/stat; do
        read -r line <"$entry" || continue
        pid=${line%% *}
        # State, parent, group, session, after a name that may hold blanks and brackets.
        set -- "$1" "${2-}" ${line##*) }
        [ "$6" != "$job" ] || [ "$pid" = "$2" ] || kill -s "$1" "$pid"
    done
}

# A login shell is known by the dash before its name, which it also puts before its messages.
if bash=$(command -v bash); then
    # What BASH_ENV names is the job's to read (-p), and ~/.bashrc is not, even of a job that exports SSH_CLIENT.
    set -- "$bash" --norc -p -c 'exec -a "-${0##*/}" "$0"' "$shell"
else
    set -- "$shell" -l
fi
# What this shell says of a job that was killed is not the job's own output.
exec 3<&0 4>&1 5>&2 </dev/null 2>/dev/null
# Not in the background, where shells have INT and QUIT ignored for good. So the job leads
# no process group yet, and setsid does not fork: its process id is the job's session and group.
{
    printf '%s\n' "$command" |
        sh -c 'echo "$$"; exec setsid "$@" >&4 2>&5 3<&- 4>&- 5>&-' run-job "$@"
    echo "$?"
} | {
    read -r job
    {
        while read -r signal; do
            # Its shell is spared, so that a trap of the script has time to run.
            tell "$signal" "$job"
        done
        # The end of input: the node's side was killed, and the job goes with it, even before it has a session.
        kill -s KILL -- "-$job" "$job"
        tell KILL
    } <&3 3<&- 4>&- 5>&- >/dev/null &
    control=$!
    exec 3<&- 4>&- 5>&-
    read -r status
    # A mom kills what is left of the job's session when its shell is done.
    kill -s KILL -- "-$job"
    tell KILL
    kill "$control"
    exit "$status"
}
