"""One round's bytes between a server process and two site processes, over four carriers; no disk, no training.

    python tests/attack/carriers.py --mib 1 50 200 --repeat 3 [--modes tls,grpc,http,ours]

tls     bare TLS 1.3 sockets (a floor)
grpc    one bidirectional gRPC stream per site, mutual TLS, messages of 1 MiB, bytes as they are (no protobuf)
http    uvicorn + httpx, TLS 1.3: GET of the plan as one stream, PUT of the answer as one stream (no Flower, no objects)
ours    fedft's carrier: StreamLink and Node, whole messages, resumption and all (not sealed: that is above a link)
Each site gets MIB and returns MIB; seconds from the first byte to the last answer; CPU seconds of server and sites.
"""

import argparse
import asyncio
import datetime
import json
import os
import resource
import socket
import ssl
import sys
import threading
import time
from concurrent import futures
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import mkdtemp

MIB = 2**20
SITES = 2


def certs(folder):
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives import serialization as ser
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    def name(n):
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, n)])

    now = datetime.datetime.now(datetime.UTC)
    ca_key = ec.generate_private_key(ec.SECP384R1())

    def make(n, key, issuer, signer, ca):
        b = (
            x509.CertificateBuilder()
            .subject_name(name(n))
            .issuer_name(name(issuer))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(1))
            .not_valid_after(now + datetime.timedelta(9))
            .add_extension(x509.BasicConstraints(ca, None), True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False)
        )
        return b.sign(signer, hashes.SHA384()).public_bytes(ser.Encoding.PEM)

    def write(n, key, pem):
        (folder / f"{n}.pem").write_bytes(pem)
        (folder / f"{n}.key").write_bytes(
            key.private_bytes(ser.Encoding.PEM, ser.PrivateFormat.PKCS8, ser.NoEncryption())
        )

    write("ca", ca_key, make("ca", ca_key, "ca", ca_key, True))
    for n in ("server", "site"):
        k = ec.generate_private_key(ec.SECP384R1())
        write(n, k, make(n, k, "ca", ca_key, False))


def cpu():
    r = resource.getrusage(resource.RUSAGE_SELF)
    return r.ru_utime + r.ru_stime


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


# bare TLS


def tls_server(folder, mib, out):
    c = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    c.minimum_version = ssl.TLSVersion.TLSv1_3
    c.load_cert_chain(folder / "server.pem", folder / "server.key")
    c.load_verify_locations(folder / "ca.pem")
    c.verify_mode = ssl.CERT_REQUIRED
    s = socket.create_server(("127.0.0.1", 0))
    out.put(s.getsockname()[1])
    ends = [c.wrap_socket(s.accept()[0], server_side=True) for _ in range(SITES)]
    for e in ends:
        e.recv(1)
    plan = os.urandom(mib * MIB)
    c0, t = cpu(), time.monotonic()

    def one(e):
        e.sendall(plan)
        got, buf = bytearray(), bytearray(MIB)
        while len(got) < len(plan):
            n = e.recv_into(buf)
            got += buf[:n]
        return bytes(got)

    with futures.ThreadPoolExecutor(SITES) as pool:
        list(pool.map(one, ends))
    out.put(("server", time.monotonic() - t, cpu() - c0, peak()))


def tls_site(folder, mib, port, out):
    c = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    c.load_cert_chain(folder / "site.pem", folder / "site.key")
    with c.wrap_socket(socket.create_connection(("127.0.0.1", port)), server_hostname="localhost") as e:
        c0 = cpu()
        e.send(b"!")
        got, buf = bytearray(), bytearray(MIB)
        while len(got) < mib * MIB:
            n = e.recv_into(buf)
            got += buf[:n]
        e.sendall(got)
        out.put(("site", 0, cpu() - c0, peak()))
        e.recv(1)


# gRPC


def pieces(data):
    view = memoryview(data)
    for i in range(0, len(view), MIB):
        yield bytes(view[i : i + MIB])


OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", 8 * MIB),
    ("grpc.http2.lookahead_bytes", 4 * MIB),
    ("grpc.http2.max_frame_size", 4 * MIB),
]


def grpc_server(folder, mib, out):
    import grpc

    plan, ready, done = os.urandom(mib * MIB), threading.Barrier(SITES + 1), threading.Barrier(SITES + 1)

    def exchange(requests, context):
        next(requests)  # hello
        ready.wait()
        yield from pieces(plan)
        got = bytearray()
        for piece in requests:
            got += piece
            if len(got) >= len(plan):
                break
        done.wait()

    handler = grpc.method_handlers_generic_handler(
        "f.Site", {"Exchange": grpc.stream_stream_rpc_method_handler(exchange)}
    )
    server = grpc.server(futures.ThreadPoolExecutor(SITES + 1), options=OPTIONS)
    server.add_generic_rpc_handlers((handler,))
    cred = grpc.ssl_server_credentials(
        [((folder / "server.key").read_bytes(), (folder / "server.pem").read_bytes())],
        (folder / "ca.pem").read_bytes(),
        require_client_auth=True,
    )
    out.put(server.add_secure_port("127.0.0.1:0", cred))
    server.start()
    ready.wait()
    c0, t = cpu(), time.monotonic()
    done.wait()
    out.put(("server", time.monotonic() - t, cpu() - c0, peak()))
    time.sleep(0.2)
    server.stop(None)


def grpc_site(folder, mib, port, out):
    import queue

    import grpc

    cred = grpc.ssl_channel_credentials(
        (folder / "ca.pem").read_bytes(), (folder / "site.key").read_bytes(), (folder / "site.pem").read_bytes()
    )
    with grpc.secure_channel(f"localhost:{port}", cred, options=OPTIONS) as channel:
        say = queue.Queue(4)
        say.put(b"!")
        c0 = cpu()
        call = channel.stream_stream("/f.Site/Exchange")(iter(say.get, None))
        got = bytearray()
        try:
            for piece in call:
                got += piece
                if len(got) >= mib * MIB:
                    break
            for piece in pieces(bytes(got)):
                say.put(piece)
            out.put(("site", 0, cpu() - c0, peak()))
            for _ in call:
                pass
        except grpc.RpcError:
            pass
        say.put(None)


# HTTP/1.1, one stream each way


def http_server(folder, mib, out):
    import uvicorn

    plan = os.urandom(mib * MIB)
    state = {"in": 0, "done": 0}
    go = asyncio.Event()

    async def app(scope, receive, send):
        if scope["type"] != "http":
            return
        if scope["method"] == "GET":
            state["in"] += 1
            if state["in"] == SITES:
                state["t"], state["c"] = time.monotonic(), cpu()
                go.set()
            await go.wait()
            await send(
                {
                    "type": "http.response.start",
                    "status": 200,
                    "headers": [(b"content-length", str(len(plan)).encode())],
                }
            )
            view = memoryview(plan)
            for i in range(0, len(view), MIB):
                await send({"type": "http.response.body", "body": bytes(view[i : i + MIB]), "more_body": True})
            await send({"type": "http.response.body", "body": b""})
            return
        got = bytearray()
        while True:
            e = await receive()
            got += e.get("body", b"")
            if not e.get("more_body"):
                break
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})
        state["done"] += 1
        if state["done"] == SITES:
            out.put(("server", time.monotonic() - state["t"], cpu() - state["c"], peak()))
            server.should_exit = True

    s = socket.create_server(("127.0.0.1", 0))
    out.put(s.getsockname()[1])
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http="httptools",
            ssl_certfile=str(folder / "server.pem"),
            ssl_keyfile=str(folder / "server.key"),
            ssl_ca_certs=str(folder / "ca.pem"),
            ssl_cert_reqs=ssl.CERT_REQUIRED,
            log_level="error",
            lifespan="off",
        )
    )
    server.run(sockets=[s])


def http_site(folder, mib, port, out):
    import httpx

    c = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    c.load_cert_chain(folder / "site.pem", folder / "site.key")
    with httpx.Client(verify=c, timeout=300) as client:
        c0, got = cpu(), bytearray()
        with client.stream("GET", f"https://localhost:{port}/plan") as r:
            for piece in r.iter_raw(MIB):
                got += piece
        client.put(
            f"https://localhost:{port}/answer", content=pieces(bytes(got)), headers={"content-length": str(len(got))}
        )
        out.put(("site", 0, cpu() - c0, peak()))


# fedft's carrier


def ours_server(folder, mib, out):
    from fedft.carriers.stream.link import StreamLink
    from fedft.security import new_keys

    own = folder / f"ours-{time.time_ns()}"
    new_keys.make_server(own, ["localhost"])
    (folder / "ours-ca.pem").write_bytes((own / "ca.pem").read_bytes())

    def members():
        return {p.name: (p.read_bytes(),) for p in folder.glob("*.public")}

    plan = os.urandom(mib * MIB)
    link = StreamLink("127.0.0.1", 0, own / "server.pem", own / "server.key", members, 2**40)
    link.start()
    out.put(link.port)
    while len(link.nodes()) < SITES:
        time.sleep(0.01)
    c0, t = cpu(), time.monotonic()
    ids = {link.push(node, "train", [b"head", plan], "1") for node in link.nodes().values()}
    while ids:
        for mid, answer in link.pull(ids, 2**40):
            assert len(answer) == len(plan) + 4
            ids = ids - {mid}
        time.sleep(0.005)
    out.put(("server", time.monotonic() - t, cpu() - c0, peak()))
    time.sleep(0.2)
    link.close()
    for p in folder.glob("*.public"):
        p.unlink()


def ours_site(folder, mib, port, out):
    from cryptography.hazmat.primitives.asymmetric import ec

    from fedft.carriers.stream.site_node import Node
    from fedft.security import private_keys

    key, file = ec.generate_private_key(ec.SECP384R1()), folder / f"{os.getpid()}.key"
    file.touch(0o600)
    file.write_bytes(private_keys.private_bytes(key))
    written = folder / f"{os.getpid()}.new"
    written.write_bytes(private_keys.node_bytes(key.public_key()))
    written.rename(file.with_suffix(".public"))
    stop = threading.Event()
    c0 = cpu()
    node = Node(f"localhost:{port}", (folder / "ours-ca.pem").read_bytes(), file)

    def handle(kind, payload, reply):
        reply(payload)

        def there():
            while node._unsent:
                time.sleep(0.005)
            out.put(("site", 0, cpu() - c0, peak()))
            stop.set()

        threading.Thread(target=there).start()

    node.run(handle, stop)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--mib", type=int, nargs="+", default=[1, 50, 200])
    p.add_argument("--repeat", type=int, default=3)
    p.add_argument("--modes", default="tls,grpc,http,ours")
    a = p.parse_args()
    folder = Path(mkdtemp())
    certs(folder)
    spawn = get_context("spawn")
    for mib in a.mib:
        found = {m: [] for m in a.modes.split(",")}
        for _ in range(a.repeat):
            for mode in found:
                out = spawn.Queue()
                g = globals()
                s = spawn.Process(target=g[f"{mode}_server"], args=(folder, mib, out))
                s.start()
                port = out.get(timeout=120)
                sites = [spawn.Process(target=g[f"{mode}_site"], args=(folder, mib, port, out)) for _ in range(SITES)]
                [x.start() for x in sites]
                said = [out.get(timeout=300) for _ in range(SITES + 1)]
                for x in [*sites, s]:
                    x.join(20)
                    x.kill()
                server = next(x for x in said if x[0] == "server")
                found[mode].append((server[1], server[2], sum(x[2] for x in said if x[0] == "site"), server[3]))
        for mode, rows in found.items():
            col = list(zip(*rows, strict=True))
            line = {
                "mib": mib,
                "mode": mode,
                "s_median": round(median(col[0]), 2),
                "s_min": round(min(col[0]), 2),
                "server_cpu": round(median(col[1]), 2),
                "sites_cpu": round(median(col[2]), 2),
                "server_peak_mib": max(col[3]),
            }
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
