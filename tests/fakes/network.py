# SPDX-License-Identifier: Apache-2.0
"""A node's network."""

from ipaddress import IPv4Address, IPv4Network

from vtorque.surroundings import Surroundings

SURROUNDINGS = Surroundings(
    networks=(IPv4Network("10.0.0.0/24"),), own=(IPv4Address("10.0.0.254"), IPv4Address("192.168.1.4")),
    gateways=(IPv4Address("10.0.0.250"),), services=((IPv4Address("10.0.0.253"), 2049),),
)
"""A node at 10.0.0.254 on its guests' bridge, with an NFS server beside it."""
