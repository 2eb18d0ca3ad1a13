#!/bin/sh
# Makes a freshly booted guest the job's own: its user with all his groups, and
# his shares. Runs as root from cloud-init's bootcmd, before sshd lets anybody in.
#
# Arguments, any number of each, in this order:
#   user NAME UID GID HOME SHELL
#   group NAME GID
#   hosts NAMES
#   own DIRECTORY FILE FILE
#   announce ADDRESS
#   mount SECONDS TYPE OPTIONS SOURCE TARGET
#   disk SERIAL TARGET format|keep NAME
#
# cloud-init's own groups have no numbers, and NFS knows nothing but numbers;
# so the account files are written here, in a guest where nobody else writes.
set -u
umask 022
state=/run/vtorque
mkdir -p "$state"

status() {
    printf '%s\n' "$1" >"$state/status.new" && mv "$state/status.new" "$state/status"
}

without() { # FILE NAME [NUMBER]: FILE without the lines of that name or number
    awk -F: -v name="$2" -v number="${3:--}" '$1 != name && $3 != number' "$1" >"$1.new" &&
        cat "$1.new" >"$1" && rm "$1.new"
}

add_user() { # NAME UID GID HOME SHELL
    without /etc/passwd "$1" "$2"
    without /etc/shadow "$1"
    shell=$5
    [ -x "$shell" ] || shell=/bin/sh
    printf '%s:x:%s:%s::%s:%s\n' "$1" "$2" "$3" "$4" "$shell" >>/etc/passwd
    # A star is no password at all; an exclamation mark would also lock out keys.
    printf '%s:*:19000:0:99999:7:::\n' "$1" >>/etc/shadow
    user=$1
}

wait_for_address() {
    tries=0
    until ip -4 -o address show scope global | grep -q inet; do
        tries=$((tries + 1))
        [ "$tries" -lt 300 ] || return 1
        sleep 0.1
    done
}

name_nfs_client() {
    # By host name alone, two jobs' guests of one node would be one client to a
    # server, and each would end the other's lease (nfs4_unique_id, nfs(5)).
    modprobe -q nfs 2>/dev/null
    name=/sys/module/nfs/parameters/nfs4_unique_id
    [ ! -e "$name" ] || tr -d '\n' </sys/class/dmi/id/product_uuid >"$name"
}

mount_share() { # SECONDS TYPE OPTIONS SOURCE TARGET
    case $2 in
    nfs*) name_nfs_client ;;
    esac
    mkdir -p "$5"
    message=$(timeout "$1" mount -t "$2" -o "$3" "$4" "$5" 2>&1) && return 0
    [ $? -ne 124 ] || message="no answer within $1 s"
    status "failed: cannot mount $4 on $5: $(printf '%s' "$message" | tr '\n' ' ')"
    return 1
}

disk_of() { # SERIAL: the device that carries it
    tries=0
    until serial=$(grep -lx "$1" /sys/block/vd*/serial 2>/dev/null); do
        tries=$((tries + 1))
        [ "$tries" -lt 100 ] || return 1
        sleep 0.1
    done
    serial=${serial#/sys/block/}
    printf '/dev/%s\n' "${serial%%/*}"
}

is_blank() { # DEVICE: only zeros where file systems, partition tables and RAIDs have what they are known by
    sectors=$(cat "/sys/block/${1#/dev/}/size")
    last=$((sectors > 2048 ? sectors - 2048 : 0))
    found=$({ dd if="$1" bs=512 count=2048 && dd if="$1" bs=512 skip="$last"; } 2>/dev/null | tr -d '\0' | head -c 1 | wc -c)
    [ "$found" -eq 0 ]
}

mount_disk() { # SERIAL TARGET format|keep NAME
    if ! device=$(disk_of "$1"); then
        status "failed: the disk $4 did not appear"
        return 1
    fi
    if is_blank "$device"; then
        if [ "$3" = keep ]; then
            status "refused: -vm disk=$4: holds no file system (disk=$4:SIZE makes one on a blank disk)"
            return 1
        fi
        # The user owns it from its first moment: there is no second step that could be missed.
        if ! message=$(mkfs.ext4 -q -m 0 -L data \
            -E "nodiscard,lazy_itable_init=1,lazy_journal_init=1,root_owner=$owner" "$device" 2>&1); then
            status "failed: cannot make a file system on $4: $(printf '%s' "$message" | tr '\n' ' ')"
            return 1
        fi
    fi
    mkdir -p "$2"
    # Whoever made the file system gets no rights by it.
    message=$(mount -o nosuid,nodev,noatime "$device" "$2" 2>&1) && return 0
    status "refused: -vm disk=$4: cannot be mounted: $(printf '%s' "$message" | tr '\n' ' ')"
    return 1
}

status "setting up"
while [ $# -gt 0 ]; do
    case $1 in
    user)
        add_user "$2" "$3" "$4" "$5" "$6"
        owner=$3:$4
        shift 6
        ;;
    group)
        # Several lines of one name or number are fine: membership is their union.
        printf '%s:x:%s:%s\n' "$2" "$3" "$user" >>/etc/group
        shift 3
        ;;
    hosts)
        printf '127.0.0.1 localhost\n127.0.1.1 %s\n' "$2" >/etc/hosts
        shift 2
        ;;
    own)
        mkdir -p "$2" "${3%/*}" "${4%/*}" && chmod 0700 "$2"
        : >>"$3" && : >>"$4"
        chmod 0644 "$3" "$4"
        chown "$owner" "$2" "$3" "$4"
        shift 4
        ;;
    announce)
        if ! wait_for_address; then
            status "failed: no address by DHCP"
            exit 1
        fi
        # The node learns this guest's address from any packet it gets from it.
        ping -c 1 -W 1 "$2" >/dev/null 2>&1 &
        shift 2
        ;;
    mount)
        mount_share "$2" "$3" "$4" "$5" "$6" || exit 1
        shift 6
        ;;
    disk)
        mount_disk "$2" "$3" "$4" "$5" || exit 1
        shift 5
        ;;
    *)
        status "failed: guest-setup does not know $1"
        exit 1
        ;;
    esac
done
[ -e /scratch ] || ln -s /workspace /scratch
# Where the original had the cluster's software.
[ -e /opt-hpc ] || ln -s /opt /opt-hpc
# The job proves where it runs by this number; only root may read it by default.
chmod 0444 /sys/class/dmi/id/product_uuid
status "ready $(cat /sys/class/dmi/id/product_uuid)"
