"""Who reaches whom by the NetworkPolicies: Kubernetes' rules for them, for pods and for addresses outside."""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.k8s.manifests import NAMESPACE, Document
from tests.k8s.references import matches


@dataclass(frozen=True)
class Place:
    """A pod, or with `address` something outside of the cluster's pods."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    namespace: str = NAMESPACE
    namespace_labels: Mapping[str, str] = field(default_factory=dict)
    address: str = ""


def reaches(policies: list[Document], source: Place, target: Place, port: int, protocol: str = "TCP") -> bool:
    """Both sides have to allow a connection; a pod that no policy of that direction selects allows all of it."""
    return _allows(policies, "Egress", source, target, port, protocol) and _allows(
        policies, "Ingress", target, source, port, protocol
    )


def _allows(policies: list[Document], way: str, at: Place, other: Place, port: int, protocol: str) -> bool:
    if at.address:
        return True
    chosen = [
        p["spec"] for p in policies if p["metadata"]["namespace"] == at.namespace and _selects(p["spec"], way, at)
    ]
    key, peers = way.lower(), {"Ingress": "from", "Egress": "to"}[way]
    rules = [rule for spec in chosen for rule in spec.get(key, [])]
    return not chosen or any(
        _peers(rule.get(peers, []), at, other) and _ports(rule.get("ports", []), port, protocol) for rule in rules
    )


def _selects(spec: Document, way: str, at: Place) -> bool:
    ways = spec.get("policyTypes", ["Ingress", *(["Egress"] if "egress" in spec else [])])
    return way in ways and matches(spec["podSelector"], at.labels)


def _peers(peers: list[Document], at: Place, other: Place) -> bool:
    return not peers or any(_peer(peer, at, other) for peer in peers)


def _peer(peer: Document, at: Place, other: Place) -> bool:
    if "ipBlock" in peer:
        block: dict[str, Any] = peer["ipBlock"]
        inside = bool(other.address) and ipaddress.ip_address(other.address) in ipaddress.ip_network(block["cidr"])
        return inside and not any(
            ipaddress.ip_address(other.address) in ipaddress.ip_network(but) for but in block.get("except", [])
        )
    if other.address:
        return False
    if "namespaceSelector" in peer:
        if not matches(peer["namespaceSelector"], other.namespace_labels):
            return False
    elif other.namespace != at.namespace:
        return False
    return matches(peer.get("podSelector", {}), other.labels)


def _ports(ports: list[Document], port: int, protocol: str) -> bool:
    return not ports or any(
        entry.get("protocol", "TCP") == protocol and entry.get("port", port) <= port <= _end(entry, port)
        for entry in ports
    )


def _end(entry: Document, port: int) -> int:
    end: int = entry.get("endPort", entry.get("port", port))
    return end
