# SPDX-License-Identifier: Apache-2.0
# Completion of vsub; `make manual` writes it.

# The names of the images, asked for once.
_vtorque_images() {
    [[ -n ${_vtorque_image_names-} ]] && return
    _vtorque_image_names=$(vmgr image list </dev/null 2>/dev/null | while read -r name rest; do echo "$name"; done)
}

# What vt_typed may become behind the words of the command line.
_vtorque_vsub() {
    local previous='' key each
    for each in "$@"; do previous=$each; done
    case "$previous $vt_typed" in
        "-vm "*) ;;
        "--generate "* | "-D "* | "-d "* | "-w "*) vt_kind=directories; return ;;
        "-S "* | "-e "* | "-o "*) vt_kind=files; return ;;
        "-A "* | "-C "* | "-F "* | "-J "* | "-K "* | "-L "* | "-M "* | "-N "* | "-P "* | "-R "* | "-T "* | "-W "* | "-a "* | "-b "* | "-c "* | "-i "* | "-j "* | "-k "* | "-l "* | "-m "* | "-p "* | "-q "* | "-r "* | "-t "* | "-u "* | "-v "*) return ;;
        "--batch "*) vt_words='torque local openpbs slurm'; return ;;
        *" --batch="*) vt_words='torque local openpbs slurm' vt_typed=${vt_typed#*=}; return ;;
        *" --generate="*) vt_kind=directories vt_typed=${vt_typed#*=}; return ;;
        *" -"*) vt_words='-vm --batch --wait --dry-run --explain --generate -gf --version --help -A -a -b -C -c -D -d -E -e -F -f -G -h -I -i -J -j -K -k -L -l -M -m -N -n -o -P -p -q -R -r -S -T -t -u -V -v -W -w -X -x -z'; return ;;
        *) vt_kind=files; return ;;
    esac
    key=${vt_typed##*,}
    if [[ $key == *=* ]]; then
        vt_typed=${key#*=}
        case ${key%%=*} in
            img) vt_kind=images ;;
            ram) vt_words=auto ;;
            distro) vt_words='debian ubuntu redhat centos osv' ;;
            arch) vt_words=x86_64 ;;
            vcpus) vt_words=auto ;;
            vcpu_pinning) vt_kind=files vt_words='true false auto' ;;
            vm_prologue) vt_kind=files ;;
            vm_epilogue) vt_kind=files ;;
            vrdma) vt_words='true false' ;;
            unclot) vt_words='true false' ;;
            iocm) vt_words='true false' ;;
            fs_type) vt_words='sharedfs ramdisk' ;;
            disk) vt_kind=files ;;
            metadata) vt_kind=files ;;
        esac
    else
        for each in img ram distro arch vcpus vcpu_pinning vms_per_node vm_prologue vm_epilogue vrdma unclot unclot_shmem iocm iocm_min_cores iocm_max_cores fs_type disk_size disk metadata; do
            [[ ",$vt_typed" == *",$each="* ]] || vt_words+=" $each="
        done
        vt_typed=$key
    fi
}

_vsub() {
    # COMP_WORDS is cut at = and more; these are the words as the shell will see them.
    local line=${COMP_LINE:0:COMP_POINT} vt_kind='' vt_words='' vt_typed before lead kept candidate
    vt_typed=${line##*[[:space:]]} lead=$vt_typed
    # Readline replaces only $2, the end of the word.
    kept=${lead%"$2"}
    read -rd '' -a before <<<"${line%"$lead"}"
    _vtorque_vsub "${before[@]:1}"
    lead=${lead%"$vt_typed"}
    case $vt_kind in
        images) _vtorque_images && vt_words+=" $_vtorque_image_names" ;;
        files | directories) compopt -o filenames 2>/dev/null ;;
    esac
    [[ $vt_words == *= ]] && compopt -o nospace 2>/dev/null
    COMPREPLY=()
    while IFS= read -r candidate; do
        candidate=$lead$candidate
        COMPREPLY+=("${candidate#"$kept"}")
    done < <(
        [[ $vt_kind == files ]] && compgen -f -- "$vt_typed"
        [[ $vt_kind == directories ]] && compgen -d -- "$vt_typed"
        compgen -W "$vt_words" -- "$vt_typed"
    )
}

complete -F _vsub vsub
