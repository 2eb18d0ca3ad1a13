# SPDX-License-Identifier: Apache-2.0
# Completion of vmgr; `make manual` writes it.

# The names of the images, asked for once.
_vtorque_images() {
    [[ -n ${_vtorque_image_names-} ]] && return
    _vtorque_image_names=$(vmgr image list </dev/null 2>/dev/null | while read -r name rest; do echo "$name"; done)
}

# What vt_typed may become behind the words of the command line.
_vtorque_vmgr() {
    local at='' option='' place=0 each
    for each in "$@"; do
        case "${option:+value}$at $each" in
            value*) option='' ;;
            ' show' | ' show config' | ' show images' | ' show image' | ' show suspended' | ' show privileged' | ' show timings' | ' image' | ' image build' | ' image list' | ' image show' | ' image verify' | ' image pull' | ' image add' | ' image update' | ' image delete' | ' add' | ' update' | ' delete' | ' delete image' | ' delete suspended' | ' ps' | ' ssh' | ' console' | ' logs' | ' report' | ' config' | ' config check' | ' config import' | ' doctor' | ' sweep' | ' node' | ' node status' | ' node out' | ' node return' | ' bench' | ' bench boot' | ' install' | ' uninstall' | ' lab' | ' lab up' | ' lab down' | ' lab status' | ' lab exec' | ' lab shell' | ' lab demo') at+=" $each" ;;
            ' show images --directory' | ' show image --directory' | ' show suspended --directory' | ' show suspended --job' | ' show suspended --user' | ' show timings --last' | ' image build --directory' | ' image build --package' | ' image build --name' | ' image list --directory' | ' image show --directory' | ' image verify --directory' | ' image pull --directory' | ' image pull --sha256' | ' image pull --name' | ' image pull --distro' | ' image pull --arch' | ' image add --directory' | ' image add --url' | ' image add --kernel' | ' image add --initrd' | ' image add --cmdline' | ' image add --sha256' | ' image add --name' | ' image add --distro' | ' image add --arch' | ' image update --directory' | ' image delete --directory' | ' add --directory' | ' add --url' | ' add --kernel' | ' add --initrd' | ' add --cmdline' | ' add --sha256' | ' add --name' | ' add --distro' | ' add --arch' | ' update --directory' | ' delete image --directory' | ' delete suspended --directory' | ' logs --what' | ' logs --rank' | ' report -o' | ' report --output' | ' bench boot -n' | ' bench boot --qsub' | ' bench boot --user' | ' install --system' | ' install --root' | ' install -w' | ' uninstall --root' | ' uninstall -w' | ' lab up --nodes') option=" $each" ;;
            *' -'*) ;;
            *) place=$((place + 1)) ;;
        esac
    done
    if [[ $vt_typed == --*=* ]]; then
        option=" ${vt_typed%%=*}" vt_typed=${vt_typed#*=}
    fi
    _vtorque_place "$at${option:-:$place}"
    if [[ -z $option && ($vt_typed == -* || -z $vt_kind$vt_words) ]]; then
        _vtorque_place "$at:-"
    fi
}

# A place: a command and its option, or the number of its operand, or - for any of its options.
_vtorque_place() {
    vt_kind='' vt_words=''
    case $1 in
        ':0') vt_words='show image add update delete ps ssh console logs report config doctor sweep node bench install uninstall lab' ;;
        ':-') vt_words='--version --help' ;;
        ' show:0') vt_words='config images image suspended privileged timings' ;;
        ' show:-') vt_words=--help ;;
        ' show config:-') vt_words='--origin --json --help' ;;
        ' show images --directory') vt_kind=directories ;;
        ' show images:-') vt_words='--directory --json --help' ;;
        ' show image:0') vt_kind=images ;;
        ' show image --directory') vt_kind=directories ;;
        ' show image:-') vt_words='--directory --json --help' ;;
        ' show suspended --directory') vt_kind=directories ;;
        ' show suspended --job') ;;
        ' show suspended --user') ;;
        ' show suspended:-') vt_words='--directory --job --user --json --help' ;;
        ' show privileged:-') vt_words='--json --help' ;;
        ' show timings --last') ;;
        ' show timings:-') vt_words='--last --json --help' ;;
        ' image:0') vt_words='build list show verify pull add update delete' ;;
        ' image:-') vt_words=--help ;;
        ' image build:0') vt_words=debian-12 ;;
        ' image build --directory') vt_kind=directories ;;
        ' image build --package') ;;
        ' image build --name') ;;
        ' image build:-') vt_words='--directory --package --name --force --stock --help' ;;
        ' image list --directory') vt_kind=directories ;;
        ' image list:-') vt_words='--directory --json --help' ;;
        ' image show:0') vt_kind=images ;;
        ' image show --directory') vt_kind=directories ;;
        ' image show:-') vt_words='--directory --json --help' ;;
        ' image verify:0') vt_kind=images ;;
        ' image verify --directory') vt_kind=directories ;;
        ' image verify:-') vt_words='--directory --json --help' ;;
        ' image pull:0') ;;
        ' image pull:'[0-9]*) ;;
        ' image pull --directory') vt_kind=directories ;;
        ' image pull --sha256') ;;
        ' image pull --name') ;;
        ' image pull --distro') vt_words='debian ubuntu redhat centos osv' ;;
        ' image pull --arch') vt_words=x86_64 ;;
        ' image pull:-') vt_words='--directory --sha256 --name --distro --arch --untrusted --trusted --help' ;;
        ' image add:0') vt_kind=files ;;
        ' image add:'[0-9]*) ;;
        ' image add --directory') vt_kind=directories ;;
        ' image add --url') ;;
        ' image add --kernel') vt_kind=files ;;
        ' image add --initrd') vt_kind=files ;;
        ' image add --cmdline') ;;
        ' image add --sha256') ;;
        ' image add --name') ;;
        ' image add --distro') vt_words='debian ubuntu redhat centos osv' ;;
        ' image add --arch') vt_words=x86_64 ;;
        ' image add:-') vt_words='--directory --url --kernel --initrd --cmdline --sha256 --name --distro --arch --untrusted --trusted --help' ;;
        ' image update:0') vt_kind=images ;;
        ' image update:'[0-9]*) ;;
        ' image update --directory') vt_kind=directories ;;
        ' image update:-') vt_words='--directory --untrusted --trusted --help' ;;
        ' image delete:0') vt_kind=images ;;
        ' image delete --directory') vt_kind=directories ;;
        ' image delete:-') vt_words='--directory --force --help' ;;
        ' add:0') vt_kind=files ;;
        ' add:'[0-9]*) ;;
        ' add --directory') vt_kind=directories ;;
        ' add --url') ;;
        ' add --kernel') vt_kind=files ;;
        ' add --initrd') vt_kind=files ;;
        ' add --cmdline') ;;
        ' add --sha256') ;;
        ' add --name') ;;
        ' add --distro') vt_words='debian ubuntu redhat centos osv' ;;
        ' add --arch') vt_words=x86_64 ;;
        ' add:-') vt_words='--directory --url --kernel --initrd --cmdline --sha256 --name --distro --arch --untrusted --trusted --help' ;;
        ' update:0') vt_kind=images ;;
        ' update:'[0-9]*) ;;
        ' update --directory') vt_kind=directories ;;
        ' update:-') vt_words='--directory --untrusted --trusted --help' ;;
        ' delete:0') vt_words='image suspended' ;;
        ' delete:-') vt_words=--help ;;
        ' delete image:0') vt_kind=images ;;
        ' delete image --directory') vt_kind=directories ;;
        ' delete image:-') vt_words='--directory --force --help' ;;
        ' delete suspended:0') ;;
        ' delete suspended --directory') vt_kind=directories ;;
        ' delete suspended:-') vt_words='--directory --help' ;;
        ' ps:-') vt_words='--json --help' ;;
        ' ssh:'[0-9]*) ;;
        ' ssh:-') vt_words=--help ;;
        ' console:0') ;;
        ' console:1') ;;
        ' console:-') vt_words='--log --help' ;;
        ' logs:0') ;;
        ' logs --what') vt_words='prologue console cloud-init' ;;
        ' logs --rank') ;;
        ' logs:-') vt_words='-f --follow --what --rank --help' ;;
        ' report:0') ;;
        ' report -o' | ' report --output') vt_kind=files ;;
        ' report:-') vt_words='-o --output --help' ;;
        ' config:0') vt_words='check import' ;;
        ' config:-') vt_words=--help ;;
        ' config check:0') vt_kind=files ;;
        ' config check:-') vt_words='--strict --help' ;;
        ' config import:0') vt_kind=files ;;
        ' config import:-') vt_words=--help ;;
        ' doctor:-') vt_words='--json --nhc --help' ;;
        ' sweep:-') vt_words='--dry-run --help' ;;
        ' node:0') vt_words='status out return' ;;
        ' node:-') vt_words=--help ;;
        ' node status:-') vt_words=--help ;;
        ' node out:'[0-9]*) ;;
        ' node out:-') vt_words=--help ;;
        ' node return:-') vt_words=--help ;;
        ' bench:0') vt_words=boot ;;
        ' bench:-') vt_words=--help ;;
        ' bench boot:0') vt_kind=images ;;
        ' bench boot -n') ;;
        ' bench boot --qsub') ;;
        ' bench boot --user') ;;
        ' bench boot:-') vt_words='-n --qsub --json --user --help' ;;
        ' install --system') vt_words='torque openpbs slurm' ;;
        ' install --root') vt_kind=files ;;
        ' install -w') ;;
        ' install:-') vt_words='--system --front-end --classic --dry-run --force --root -w --help' ;;
        ' uninstall --root') vt_kind=files ;;
        ' uninstall -w') ;;
        ' uninstall:-') vt_words='--dry-run --force --root -w --help' ;;
        ' lab:0') vt_words='up down status exec shell demo' ;;
        ' lab:-') vt_words=--help ;;
        ' lab up --nodes') ;;
        ' lab up:-') vt_words='--nodes --help' ;;
        ' lab down:-') vt_words=--help ;;
        ' lab status:-') vt_words='--json --help' ;;
        ' lab exec:0') ;;
        ' lab exec:'[0-9]*) ;;
        ' lab exec:-') vt_words=--help ;;
        ' lab shell:-') vt_words=--help ;;
        ' lab demo:-') vt_words=--help ;;
    esac
}

_vmgr() {
    # COMP_WORDS is cut at = and more; these are the words as the shell will see them.
    local line=${COMP_LINE:0:COMP_POINT} vt_kind='' vt_words='' vt_typed before lead kept candidate
    vt_typed=${line##*[[:space:]]} lead=$vt_typed
    # Readline replaces only $2, the end of the word.
    kept=${lead%"$2"}
    read -rd '' -a before <<<"${line%"$lead"}"
    _vtorque_vmgr "${before[@]:1}"
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

complete -F _vmgr vmgr
