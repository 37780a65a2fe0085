"""
A TCP proxy with bad manners: it cuts, stalls, refuses, and cuts after so many bytes.

One thread and no blocking call in it, so that a reset is a reset at once. Direction "up" leads towards the server,
"down" from it. Must never change, drop or invent a byte of what it passes on.
"""
import contextlib
import queue
import select
import socket
import struct
import threading

from processes import free_port, unread_bytes, unsent_bytes

CHUNK = 1 << 16
DIRECTIONS = ("up", "down")


class _Flow:
    """One direction of a connection. held: read from the source, not yet taken by the target."""

    def __init__(self, source, target, direction):
        self.source, self.target, self.direction = source, target, direction
        self.held = b""
        self.ended = self.passed_on_its_end = self.last = False


class _Link:
    def __init__(self, client, server):
        self.client, self.server = client, server
        for s in (client, server):
            s.setblocking(False)
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.flows = [_Flow(client, server, "up"), _Flow(server, client, "down")]

    def close(self, abruptly):
        for s in (self.client, self.server):
            if abruptly:
                s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            else:
                with contextlib.suppress(OSError):
                    s.shutdown(socket.SHUT_RDWR)
            s.close()


class Toxic:
    """.port leads to the upstream port of this host; .passed counts bytes by direction."""

    def __init__(self, upstream):
        self.upstream, self.port = upstream, free_port()
        self.passed = dict.fromkeys(DIRECTIONS, 0)
        self._links, self._stalled, self._listener = [], set(), None
        self._budget = None
        self._orders = queue.SimpleQueue()
        self._bell, self._ring = socket.socketpair()
        self._closed = False
        self._listen()
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()

    # What it can be told. Each is done when the call returns.

    def cut(self, abruptly=True):
        """Ends all connections, with RST or with FIN; new ones are welcome. Returns how many there were."""
        return self._do(lambda: len([self._end(link, abruptly) for link in list(self._links)]))

    def stall(self, *directions):
        """Reads and passes on nothing in these directions, in all connections of now and later."""
        self._do(lambda: self._stalled.update(directions or DIRECTIONS))

    def flow(self, *directions):
        self._do(lambda: self._stalled.difference_update(directions or DIRECTIONS))

    def cut_after(self, direction, n, abruptly=True):
        """Ends the connection that passes on the n-th byte from now in this direction, right behind that byte."""
        self._do(lambda: setattr(self, "_budget", [direction, n, abruptly]))

    @property
    def armed(self):
        return self._budget is not None

    def disarm(self):
        self._do(lambda: setattr(self, "_budget", None))

    def refuse(self):
        """Nobody listens from now on. Connections that stand go on."""
        self._do(self._listener_closed)

    def accept(self):
        self._do(self._listen)

    def heal(self):
        self.disarm()
        self.accept()
        self.flow()

    def close(self):
        self.cut()
        self.refuse()
        self._do(lambda: setattr(self, "_closed", True))
        self._thread.join(10)
        self._bell.close()
        self._ring.close()

    # What it can be asked

    def links(self):
        return len(self._links)

    def server_side_ports(self):
        """The ports from which it has connected to the server: how the server knows these connections."""
        return self._do(lambda: [link.server.getsockname()[1] for link in self._links])

    def client_has_read_all(self):
        """True when nothing is on its way to the clients: not here, not in a kernel."""
        return self._do(self._nothing_on_its_way)

    def _nothing_on_its_way(self):
        waiting = unread_bytes()
        return all(not link.flows[1].held and unsent_bytes(link.client) == 0 and
                   waiting.get((link.client.getpeername()[1], self.port), 0) == 0 for link in self._links)

    # The thread

    def _do(self, order):
        """Has the thread do it, and returns what it returned."""
        done = queue.SimpleQueue()
        self._orders.put((order, done))
        self._ring.send(b"!")
        result, error = done.get(timeout=30)
        if error is not None:
            raise error
        return result

    def _obey(self):
        self._bell.recv(4096)
        while not self._orders.empty():
            order, done = self._orders.get()
            try:
                done.put((order(), None))
            except Exception as e:
                done.put((None, e))

    def _listen(self):
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self.port), backlog=100)
            self._listener.setblocking(False)

    def _listener_closed(self):
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _accept_one(self):
        try:
            client, _ = self._listener.accept()
        except OSError:
            return
        try:
            # On the loopback an answer comes at once.
            self._links.append(_Link(client, socket.create_connection(("127.0.0.1", self.upstream), timeout=5)))
        except OSError:
            client.close()

    def _end(self, link, abruptly):
        if link in self._links:
            self._links.remove(link)
            link.close(abruptly)

    def _loop(self):
        while not self._closed:
            readers, writers, lingering = {}, {}, False
            for link in self._links:
                for flow in link.flows:
                    if flow.direction in self._stalled:
                        continue
                    if flow.held:
                        writers[flow.target] = link, flow
                    elif not flow.ended and not flow.last:
                        readers[flow.source] = link, flow
                    lingering = lingering or flow.last
            listeners = [self._bell] + ([self._listener] if self._listener is not None else [])
            readable, writable, _ = select.select([*listeners, *readers], list(writers), [],
                                                  0.001 if lingering else 30)
            for s in writable:
                self._attempt(*writers[s], self._write)
            for s in readable:
                if s in readers and readers[s][0] in self._links:
                    self._attempt(*readers[s], self._read)
            for link in [link for link in self._links if lingering]:
                for flow in link.flows:
                    self._attempt(link, flow, self._finish)
            # Orders last: what was asked for above may be closed by them.
            if self._listener is not None and self._listener in readable:
                self._accept_one()
            if self._bell in readable:
                self._obey()

    def _attempt(self, link, flow, step):
        try:
            if link in self._links:
                step(link, flow)
        except BlockingIOError:
            pass
        except OSError:
            # One side has been reset. The other is not to take it for an orderly end.
            self._end(link, True)

    def _read(self, link, flow):
        budget = self._budget if self._budget is not None and self._budget[0] == flow.direction else None
        data = flow.source.recv(CHUNK if budget is None else min(CHUNK, budget[1]))
        if not data:
            flow.ended = True
        elif budget is not None:
            budget[1] -= len(data)
            if budget[1] == 0:
                flow.last, flow.abruptly = True, budget[2]
                self._budget = None
        flow.held = data
        self._write(link, flow)

    def _write(self, link, flow):
        if flow.held:
            sent = flow.target.send(flow.held)
            self.passed[flow.direction] += sent
            flow.held = flow.held[sent:]
        self._finish(link, flow)

    def _finish(self, link, flow):
        if flow.held:
            return
        # A reset throws away what is still in the kernel: the last byte is to arrive before it.
        if flow.last and (not flow.abruptly or unsent_bytes(flow.target) == 0):
            self._end(link, flow.abruptly)
        elif flow.ended and not flow.passed_on_its_end:
            flow.passed_on_its_end = True
            flow.target.shutdown(socket.SHUT_WR)
            if all(f.passed_on_its_end for f in link.flows):
                self._end(link, False)
