"""The node process: one nursery that joins sockets, swarm and member, and one way to end them."""

from __future__ import annotations

import gc
import logging
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import trio
from filelock import FileLock
from filelock import Timeout as LockTimeout

import node
from node import logs
from node.api.http.listening import close_all, listen_localhost, listen_tcp, listen_unix
from node.api.http.owner import Owner
from node.api.http.serving import serve
from node.api.routes.apps import client_app, control_app
from node.arrival import tell_arrival
from node.config import DEFAULT_API, Settings, announce_multiaddrs, is_loopback, listen_multiaddrs, parse_host_port
from node.engine.workers import open_workers
from node.environments import ready_pythons
from node.errors import AlreadyRunning, ParallaxError, sentence
from node.home import HAS_UNIX_SOCKETS, Control, Home, write_private
from node.live.member import Member
from node.live.remembered import Remembered
from node.loop_watch import log_blocked_loop
from node.machine import machine_id
from node.open_files import raise_open_files
from node.remembered_machine import RememberedMachine
from node.stopping import WITH_PARENT, Stopping
from node.swarm.host import SwarmSettings, open_swarm
from node.worker_start import StartedForkServer

if TYPE_CHECKING:
    pass  # libp2p brings trio-stubs, which hide trio's own types

log = logging.getLogger(__name__)

E = TypeVar("E", bound=Exception)


class NodeFailed(ParallaxError):
    """The system refused what the node cannot do without."""


def run_node(
    settings: Settings, home: Home, given_name: str | None = None, fork_server: StartedForkServer | None = None
) -> int:
    """Run a node until a signal ends it. Returns the exit code.

    Args:
        settings: checked.
        home: its folders.
        given_name: the name that the command line gave it, which it keeps from then on.
        fork_server: what workers are forked from, started before all this was imported; None: it is started here.

    Raises:
        ParallaxError: it cannot start.
    """
    logs.set_up(settings.log_format, settings.log_level)
    raise_open_files()
    with _locked(home):
        if given_name is not None:
            write_private(home.name_file, settings.name.encode())
        gc.freeze()  # what the imports made stays: looking through it again holds the loop for a tenth of a second
        return trio.run(_main, settings, home, fork_server, instruments=[log_blocked_loop()])


@contextmanager
def _locked(home: Home) -> Iterator[None]:
    """One node per home."""
    home.make_folders()
    lock = FileLock(home.lock, mode=0o600)
    try:
        lock.acquire(timeout=0)
    except LockTimeout as error:
        raise AlreadyRunning(str(home.data)) from error
    try:
        yield
    finally:
        # The file stays: whoever has opened it and waits would lock a file that is no longer in the folder, while a
        # third one makes and locks another.
        lock.release()


async def _main(settings: Settings, home: Home, fork_server: StartedForkServer | None) -> int:
    stopping = Stopping()
    failure: ParallaxError | None = None
    async with trio.open_nursery() as outer:
        await outer.start(stopping.on_signals)
        if os.environ.get(WITH_PARENT):
            stopping.with_parent()
        try:
            await _serve(settings, home, stopping, fork_server)
        except* ParallaxError as group:
            failure = next(iter(_leaves(group)))
        except* OSError as group:  # a full disk, a lost folder: a sentence for people, the place for who mends it
            log.debug("what ended the node", exc_info=group)
            failure = failure or NodeFailed(sentence(next(iter(_leaves(group)))))
        except* MemoryError as group:
            log.debug("what ended the node", exc_info=group)
            failure = failure or NodeFailed("there is no memory left; give the node less with --memory")
        outer.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return 0


async def _serve(settings: Settings, home: Home, stopping: Stopping, fork_server: StartedForkServer | None) -> None:
    remembered, machine = Remembered(home.data / "model.json"), RememberedMachine(home.machine_file)
    api = _api_listeners(settings)
    owner_token = secrets.token_urlsafe(32)
    control, control_listener = _control_listener(settings, home)
    try:
        swarm_settings = SwarmSettings(
            home=home,
            name=settings.name,
            listen=listen_multiaddrs(settings.listen),
            announce=announce_multiaddrs(settings.announce),
            invitations=settings.join,
            discover_lan=settings.discover,
            machine_id=machine_id(),
            software=f"parallax {node.__version__}",
        )
        async with (
            open_workers(started=fork_server, memory=machine, environments=ready_pythons(home.data)) as workers,
            open_swarm(
                swarm_settings,
                pinned_layers=settings.layers,
                memory_cap_bytes=settings.memory_bytes,
                region=settings.region,
            ) as swarm,
        ):
            this = Member(settings, home, swarm, remembered, workers.engine)
            async with trio.open_nursery() as nursery:
                await nursery.start(serve, control_app(this.service, token=control.token), [control_listener])
                home.write_control(control)
                if api:
                    host, port = api[0].getsockname()[:2]
                    loopback = is_loopback(host)
                    if not loopback:
                        log.warning("the API at %s:%d is open to everyone who can reach this machine", host, port)
                    write_private(home.owner_token_file, owner_token.encode())
                    app = client_app(
                        this.service,
                        loopback_only=loopback,
                        owner=Owner(owner_token, str(home.owner_token_file), exposed=not loopback),
                        hosts=settings.allow_host,
                        origins=settings.cors,
                    )
                    await nursery.start(serve, app, api)
                    log.info("API at http://%s:%d/v1", f"[{host}]" if ":" in host else host, port)
                log.info("node %s (%s)", settings.name, swarm.node_id)
                nursery.start_soon(tell_arrival, this.journal, bool(settings.join))
                nursery.start_soon(this.run)
                await stopping.asked.wait()
                async with trio.open_nursery() as leaving:
                    leaving.start_soon(_cancel_at, stopping.at_once, leaving.cancel_scope)
                    await this.leave()
                    leaving.cancel_scope.cancel()
                nursery.cancel_scope.cancel()  # the swarm's block is left in order: it says goodbye
    finally:
        home.control_file.unlink(missing_ok=True)
        home.owner_token_file.unlink(missing_ok=True)
        close_all([control_listener, *api])
        if control.socket_path is not None:
            _remove_socket(Path(control.socket_path), home)


async def _cancel_at(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


def _control_listener(settings: Settings, home: Home) -> tuple[Control, socket.socket]:
    if settings.control == "unix" and HAS_UNIX_SOCKETS:
        return Control(socket_path=str(home.socket_path)), listen_unix(home.socket_path)
    listener = listen_tcp("127.0.0.1", 0, "--control")
    return Control(port=listener.getsockname()[1], token=secrets.token_urlsafe(32)), listener


def _api_listeners(settings: Settings) -> list[socket.socket]:
    """The API's sockets. The default port gives way to the next free one; a port that was asked for does not."""
    if settings.api == "off":
        return []
    host, port = parse_host_port(settings.api, "--api")
    if host != "localhost":
        return [listen_tcp(host, port, "--api")]
    if settings.api == DEFAULT_API or port == 0:
        return listen_localhost(port, "--api")
    return listen_localhost(port, "--api", ports_tried=1)


def _remove_socket(path: Path, home: Home) -> None:
    path.unlink(missing_ok=True)
    if path.parent != home.runtime:
        try:
            path.parent.rmdir()
        except OSError as error:
            log.debug("%s stays: %s", path.parent, error)


def _leaves(group: BaseExceptionGroup[E]) -> Iterator[E]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
