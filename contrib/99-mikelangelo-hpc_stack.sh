# SPDX-License-Identifier: Apache-2.0
# For /etc/profile.d on front ends and nodes: where vtorque is, and its commands on PATH.
# Read by the login shells of all users: it must stay silent, and plain sh.
VTORQUE_DIR=/opt/vtorque
export VTORQUE_DIR
case ":${PATH}:" in
*":${VTORQUE_DIR}/scripts:"*) ;;
*) PATH="${PATH:+${PATH}:}${VTORQUE_DIR}/scripts" ;;
esac
