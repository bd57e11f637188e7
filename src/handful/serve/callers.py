"""Who may call a server: the names and addresses that it answers to, and the pages that may ask it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import urlsplit

from handful.errors import unexpected

HOSTS = "a name, an address, a network as 10.0.0.0/8, *.domain, or * for any, without scheme, port or path"
ORIGINS = "an origin as https://app.example or http://localhost:3000, without a path; or * for any"
NAME = re.compile(r"(?:\*\.)?[a-z0-9_](?:[a-z0-9_.-]*[a-z0-9_])?\.?")
PORTS = {"http": ":80", "https": ":443"}


@dataclass(frozen=True)
class Hosts:
    """Names and addresses that a request's Host header may have."""

    names: frozenset[str]
    networks: tuple[IPv4Network | IPv6Network, ...]

    @classmethod
    def read(cls, given: Iterable[str]) -> Hosts:
        """Read names, addresses, networks, `*.domain` and `*`.

        Raises
        ------
        ParameterError
            One of them is something else.
        """
        names, networks = set(), []
        for one in given:
            text = one.strip().lower()
            try:
                networks.append(ip_network(text.removeprefix("[").removesuffix("]"), strict=False))
                continue
            except ValueError:
                pass
            try:
                name = text if text.isascii() else text.encode("idna").decode()  # as browsers send it
            except UnicodeError:
                name = ""
            if name != "*" and not NAME.fullmatch(name):
                raise unexpected("--allow-host", one, HOSTS)
            names.add(name.removesuffix("."))
        return cls(frozenset(names), tuple(networks))

    def allow(self, host: str) -> bool:
        """Say whether a Host header, with or without a port, is one of these."""
        if "*" in self.names:
            return True
        name = _hostname(host)
        address = _address(name)
        if address is not None:
            return any(address in network for network in self.networks)
        parents = (name[at:] for at, letter in enumerate(name) if letter == ".")
        return name in self.names or any(f"*{parent}" in self.names for parent in parents)

    def __str__(self) -> str:
        alone = (str(net.network_address if net.num_addresses == 1 else net) for net in self.networks)
        return ", ".join(sorted([*self.names, *alone]))


def _hostname(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").removesuffix(".").lower()
    except ValueError:
        return ""


def _address(name: str) -> IPv4Address | IPv6Address | None:
    try:
        found = ip_address(name)
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


@dataclass(frozen=True)
class Origins:
    """Origins of pages, beside the server's own, whose scripts may ask it and read what it answers."""

    allowed: frozenset[str]

    @classmethod
    def read(cls, given: Iterable[str]) -> Origins:
        """Read origins as browsers send them, or `*`.

        Raises
        ------
        ParameterError
            One of them is no origin.
        """
        found = set()
        for one in given:
            text = one.strip().lower().removesuffix("/")
            if text not in ("*", "null"):
                try:
                    parts = urlsplit(text)
                    whole = bool(parts.scheme and parts.hostname) and parts.port != 0
                except ValueError:
                    whole = False
                if not whole or parts.path or parts.query or parts.fragment or parts.username is not None:
                    raise unexpected("--allow-origin", one, ORIGINS)
                text = f"{parts.scheme}://{_without_port(parts.netloc, parts.scheme)}"
            found.add(text)
        return cls(frozenset(found))

    def allow(self, origin: str) -> bool:
        """Say whether it is one of these."""
        return "*" in self.allowed or origin.lower() in self.allowed


def is_own(origin: str, host: str) -> bool:
    """Say whether a page of this origin came from the server that is called by this Host."""
    try:
        parts = urlsplit(origin.lower())
    except ValueError:
        return False
    own = _without_port(parts.netloc, parts.scheme)
    return bool(own) and own == _without_port(host.lower(), parts.scheme)


def _without_port(netloc: str, scheme: str) -> str:
    """Leave out the port that a scheme has anyway, as browsers do."""
    return netloc.removesuffix(PORTS.get(scheme, "\n"))
