#!/usr/bin/env python3
"""Measures our NBD server and client against nbdkit, qemu-nbd and nbd-server, on the same data in alternating rounds.

    cargo build --release && sudo tests/bench/nbd.py [--rounds N] [--only CASE,...] [--write]

Prints Markdown tables of medians, spreads and ratios; --write puts them into docs/performance.md. Wants root (loop devices), some
20 GiB of memory and 12 GiB of disk, and nbdkit, qemu-utils, nbd-server, libnbd-bin, fio, xfsprogs, gnutls-bin. Nothing else should run
meanwhile: the load average is printed, and absolute numbers mean nothing on another machine.
"""

import argparse
import contextlib
import json
import os
import pathlib
import platform
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = ROOT / "target/release"
GIB = 1 << 30
SEQUENTIAL = 2 * GIB
NOTHING = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
BEGIN, END = "<!-- nbd: made by tests/bench/nbd.py -->", "<!-- nbd: end -->"


def run(*command, **more):
    return subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True, **more).stdout


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """One server process on one file, listening on a Unix socket or TCP."""

    def __init__(self, kind, data, transport, scratch, pki=None):
        self.stopped = False
        self.path = scratch / (kind.replace(" ", "-") + ".sock")
        self.path.unlink(missing_ok=True)
        self.port = free_port()
        self.pki, self.transport = pki, transport
        self.export = "" if kind == "nbdkit" else "e"
        self.pid_file = None
        command = getattr(self, kind.replace("-", "_").replace(" ", "_"))(str(data), scratch)
        self.process = subprocess.Popen([str(word) for word in command], **NOTHING)
        self.wait()

    def ours(self, data, scratch, freeze="reflink"):
        listen = ["--socket", self.path] if self.transport == "unix" else ["--listen", f"127.0.0.1:{self.port}"]
        tls = ["--tls-dir", self.pki] if self.pki else []
        control = ["--control", scratch / "control.sock"]
        return [BIN / "nbd-export", "serve", f"e={data}", *listen, *tls, *control, "--freeze", freeze]

    def ours_copying(self, data, scratch):
        return self.ours(data, scratch, "static")

    def nbdkit(self, data, scratch):
        listen = ["-U", self.path] if self.transport == "unix" else ["-i", "127.0.0.1", "-p", self.port]
        tls = ["--tls=require", f"--tls-certificates={self.pki}", "--tls-verify-peer"] if self.pki else []
        return ["nbdkit", "-f", "-r", *listen, *tls, "file", data]

    def qemu_nbd(self, data, scratch, *more):
        listen = ["-k", self.path] if self.transport == "unix" else ["-b", "127.0.0.1", "-p", self.port]
        creds = f"tls-creds-x509,id=t,endpoint=server,dir={self.pki},verify-peer=on"
        tls = ["--object", creds, "--tls-creds", "t"] if self.pki else []
        return ["qemu-nbd", "-r", "-t", "-f", "raw", "--shared=16", "-x", "e", *listen, *tls, *more, data]

    def qemu_nbd_direct(self, data, scratch):
        return self.qemu_nbd(data, scratch, "--cache=none", "--aio=io_uring")

    def nbd_server(self, data, scratch):
        unix = f"unixsock = {self.path}\n" if self.transport == "unix" else ""
        config = scratch / "nbd-server.conf"
        config.write_text(
            f"[generic]\nlistenaddr = 127.0.0.1\nport = {self.port}\n{unix}[e]\nexportname = {data}\nreadonly = true\n"
        )
        self.pid_file = scratch / "nbd-server.pid"
        self.pid_file.unlink(missing_ok=True)
        # It goes to the background: with -d it ends after one client.
        return ["nbd-server", "-C", config, "-p", self.pid_file]

    def uri(self):
        tls = "s" if self.pki else ""
        query = f"tls-certificates={self.pki}" if self.pki else ""
        if self.transport == "unix":
            return f"nbd{tls}+unix:///{self.export}?socket={self.path}&{query}".rstrip("&")
        return f"nbd{tls}://localhost:{self.port}/{self.export}?{query}".rstrip("?")

    def wait(self):
        for _ in range(3000):
            if self.process.poll() is not None and not self.pid_file:
                sys.exit(f"a server ended at once: {' '.join(map(str, self.process.args))}")
            try:
                family = socket.AF_UNIX if self.transport == "unix" else socket.AF_INET
                with socket.socket(family) as probe:
                    probe.connect(str(self.path) if self.transport == "unix" else ("127.0.0.1", self.port))
                return
            except OSError:
                time.sleep(0.02)
        sys.exit("a server does not answer")

    def pid(self):
        return int(self.pid_file.read_text()) if self.pid_file else self.process.pid

    def cpu(self):
        """CPU seconds of the process and its children so far, in steps of a clock tick."""
        ticks, pids = 0, [self.pid()]
        tasks = pathlib.Path(f"/proc/{self.pid()}/task")
        for task in tasks.iterdir():
            # Threads and children may end meanwhile; the time of a thread that ended is in its process.
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                pids += [int(pid) for pid in (task / "children").read_text().split()]
        for pid in pids:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
                ticks += sum(map(int, fields[11:15]))
        return ticks / os.sysconf("SC_CLK_TCK")

    def stop(self):
        """Ends it; CPU seconds of its whole life."""
        self.stopped = True
        if self.pid_file:
            cpu, pid = self.cpu(), self.pid()
            os.kill(pid, signal.SIGTERM)
            self.process.wait()
            while pathlib.Path(f"/proc/{pid}").exists():
                time.sleep(0.01)
            return cpu
        self.process.send_signal(signal.SIGTERM)
        _, _, usage = os.wait4(self.process.pid, 0)
        self.process.returncode = 0
        return usage.ru_utime + usage.ru_stime


def timed(*command):
    """Seconds, and CPU seconds of the command."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    run(*command)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.monotonic() - start, cpu


# ---- the cases: each gives, for one server, a dictionary of numbers ----


def sequential(server):
    run("nbdcopy", server.uri(), "null:")
    seconds, client = timed("nbdcopy", server.uri(), "null:")
    gib = SEQUENTIAL / GIB
    return {"GiB/s": gib / seconds, "client CPU-s/GiB": client / gib, "server CPU-s/GiB": server.stop() / (2 * gib)}


def random_reads(depth):
    def case(server):
        run("nbdcopy", server.uri(), "null:")
        before = server.cpu()
        job = ["--name=x", "--ioengine=nbd", f"--uri={server.uri()}", "--rw=randread", "--bs=4k", f"--iodepth={depth}"]
        out = run("fio", *job, "--runtime=1", "--time_based", "--randrepeat=0", "--output-format=json")
        cpu = server.cpu() - before
        server.stop()
        read = json.loads(out[out.index("{") :])["jobs"][0]["read"]
        percentile = read["clat_ns"]["percentile"]
        return {
            "kIOPS": read["iops"] / 1000,
            "server CPU us/op": cpu / read["total_ios"] * 1e6,
            "p50 us": percentile["50.000000"] / 1000,
            "p99 us": percentile["99.000000"] / 1000,
        }

    return case


def whole_map(*client):
    def case(server):
        run("nbdinfo", "--size", server.uri())
        before = server.cpu()
        words = [word.replace("URI", server.uri()) for word in client]
        seconds, _ = timed(*words)
        cpu = server.cpu() - before
        server.stop()
        return {"maps/s": 1 / seconds, "seconds": seconds, "server CPU-s": cpu}

    return case


def client(*command):
    def case(server):
        run("nbdcopy", server.uri(), "null:")
        seconds, cpu = timed(*[str(word).replace("URI", server.uri()) for word in command])
        server.stop()
        return {"GiB/s": SEQUENTIAL / GIB / seconds, "client CPU-s/GiB": cpu / (SEQUENTIAL / GIB)}

    return case


class Bench:
    def __init__(self, rounds, scratch):
        self.rounds, self.scratch, self.report, self.verdicts = rounds, scratch, [], []

    def compare(self, title, data, transport, kinds, case, pki=None):
        """Runs a case for every server in every round, and tells the numbers of each against the best peer."""
        cases = case if isinstance(case, dict) else {kind: (kind, case) for kind in kinds}
        found = {name: [] for name in cases}
        for number in range(self.rounds):
            for name, (kind, measure) in cases.items():
                server = Server(kind, data, transport, self.scratch, pki)
                try:
                    found[name].append(measure(server))
                finally:
                    if not server.stopped:
                        server.stop()
            print(f"{title}: round {number + 1}/{self.rounds}", file=sys.stderr)
        self.table(title, found)
        return {name: {key: statistics.median(r[key] for r in rows) for key in rows[0]} for name, rows in found.items()}

    def table(self, title, found):
        keys = list(next(iter(found.values()))[0])
        self.report += [f"### {title}", "", "| | " + " | ".join(keys) + " |", "|---|" + "---|" * len(keys)]
        for name, rows in found.items():
            cells = []
            for key in keys:
                values = sorted(row[key] for row in rows)
                cells.append(f"{statistics.median(values):.3g} ({values[0]:.3g}–{values[-1]:.3g})")
            self.report.append(f"| {name} | " + " | ".join(cells) + " |")
        self.report.append("")

    def target(self, what, ours, target, at_least=True):
        met = ours >= target if at_least else ours <= target
        sign = "≥" if at_least else "≤"
        self.verdicts.append(f"| {what} | {sign} {target:g} | {ours:.2f} | {'met' if met else '**missed**'} |")


def certificates(directory):
    directory.mkdir()
    (directory / "ca.info").write_text("cn = bench\nca\ncert_signing_key\nexpiration_days = 2\n")
    run("certtool", "--generate-privkey", "--no-text", "--outfile", directory / "ca-key.pem")
    ca = ["--load-ca-privkey", directory / "ca-key.pem", "--load-ca-certificate", directory / "ca-cert.pem"]
    own = ["--load-privkey", directory / "ca-key.pem", "--template", directory / "ca.info"]
    run("certtool", "--generate-self-signed", *own, "--outfile", directory / "ca-cert.pem")
    for who, use in [("server", "tls_www_server\ndns_name = localhost"), ("client", "tls_www_client")]:
        template = directory / f"{who}.info"
        template.write_text(f"cn = {who}\n{use}\nsigning_key\nencryption_key\nexpiration_days = 2\n")
        key = directory / f"{who}-key.pem"
        run("certtool", "--generate-privkey", "--no-text", "--outfile", key)
        key.chmod(0o600)
        cert = ["--load-privkey", key, "--template", template, "--outfile", directory / f"{who}-cert.pem"]
        run("certtool", "--generate-certificate", *cert, *ca)
    return directory


def fragmented(path, extents):
    """Data and holes of 4 KiB by turns."""
    with open(path, "wb") as file:
        for n in range(extents // 2):
            file.seek(n * 8192)
            file.write(b"\xa5" * 4096)
        file.truncate(extents * 4096)


PEERS = ["nbdkit", "qemu-nbd", "nbd-server"]


def best(found, key):
    """The best of the peers."""
    values = [row[key] for name, row in found.items() if not name.startswith("ours")]
    return max(values) if key in ("GiB/s", "kIOPS", "maps/s") else min(values)


def bench_sequential(bench, data):
    for transport, speed, cpu in [("unix", 1.25, 0.3), ("tcp", 1.1, 0.6)]:
        title = f"2 GiB from the page cache, {transport}, nbdcopy to null"
        found = bench.compare(title, data, transport, ["ours", "ours copying", *PEERS], sequential)
        ours = found["ours"]
        bench.target(f"{title}: speed / best peer", ours["GiB/s"] / best(found, "GiB/s"), speed)
        key = "server CPU-s/GiB"
        bench.target(f"{title}: server CPU / best peer", ours[key] / best(found, key), cpu, False)


def bench_random(bench, data):
    ours = {}
    for depth in [1, 16, 64]:
        title = f"4 KiB random reads, QD {depth}, unix"
        found = bench.compare(title, data, "unix", ["ours", *PEERS], random_reads(depth))
        ours[depth] = found["ours"]
        bench.target(f"{title}: speed / best peer", found["ours"]["kIOPS"] / best(found, "kIOPS"), 1.05)
        key = "server CPU us/op"
        bench.target(f"{title}: server CPU / best peer", found["ours"][key] / best(found, key), 0.6, False)
        bench.target(f"{title}: p99 / best peer", found["ours"]["p99 us"] / best(found, "p99 us"), 1.0, False)
    bench.target("4 KiB random reads, unix: QD 64 / QD 16 of ours", ours[64]["kIOPS"] / ours[16]["kIOPS"], 1.0)


def bench_map(bench, scratch):
    for extents in [262_144, 1_000_000]:
        data = scratch / "xfs" / f"fragmented-{extents}"
        fragmented(data, extents)
        clients = [["nbdinfo", "--map", "--totals", "URI"]]
        if extents < 1_000_000:
            # One request for each extent: the client takes most of the time.
            clients.append(["qemu-img", "map", "--output=json", "-f", "raw", "URI"])
        for words in clients:
            title = f"map of {extents} extents, {' '.join(words[:3])}, unix"
            found = bench.compare(title, data, "unix", ["ours", "nbdkit", "qemu-nbd"], whole_map(*words))
            wanted = 1.5 if words[0] == "nbdinfo" else 1.0
            bench.target(f"{title}: speed / best peer", found["ours"]["maps/s"] / best(found, "maps/s"), wanted)
        data.unlink()


def bench_direct(bench, data, scratch):
    device = run("losetup", "-f", "--show", "-r", "--direct-io=on", data).strip()
    try:
        title = "2 GiB past the page cache (read-only loop device, O_DIRECT), unix, nbdcopy to null"
        found = bench.compare(title, device, "unix", ["ours copying", "qemu-nbd direct"], sequential)
        ours = found["ours copying"]
        bench.target(f"{title}: speed / qemu-nbd", ours["GiB/s"] / best(found, "GiB/s"), 1.0)
    finally:
        run("losetup", "-d", device)


def bench_tls(bench, data, scratch):
    pki = certificates(scratch / "pki")
    title = "2 GiB from the page cache, TLS over TCP, nbdcopy to null"
    found = bench.compare(title, data, "tcp", ["ours", "nbdkit", "qemu-nbd"], sequential, pki)
    bench.target(f"{title}: speed / best peer", found["ours"]["GiB/s"] / best(found, "GiB/s"), 1.0)


def bench_client(bench, data):
    copy = {"ours": client(BIN / "proxy-client", "copy", "URI", "null:"), "nbdcopy": client("nbdcopy", "URI", "null:")}
    for kind in ["ours", "nbdkit", "qemu-nbd"]:
        cases = {name: (kind, case) for name, case in copy.items()}
        title = f"our client against nbdcopy, from {'our server' if kind == 'ours' else kind}, unix, to null"
        found = bench.compare(title, data, "unix", [], cases)
        bench.target(f"{title}: speed", found["ours"]["GiB/s"] / found["nbdcopy"]["GiB/s"], 1.0)
        key = "client CPU-s/GiB"
        bench.target(f"{title}: client CPU", found["ours"][key] / found["nbdcopy"][key], 1.0, False)


CASES = ["sequential", "random", "map", "direct", "tls", "client"]


def version(*command):
    try:
        return run(*command).splitlines()[0]
    except (OSError, subprocess.CalledProcessError):
        return f"{command[0]}: version unknown"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default=",".join(CASES), help=f"of {', '.join(CASES)}")
    parser.add_argument("--write", action="store_true", help="put the result into docs/performance.md")
    arguments = parser.parse_args()
    only = arguments.only.split(",")
    if unknown := set(only) - set(CASES):
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    if os.geteuid() != 0:
        parser.error("loop devices want root")
    missing = [tool for tool in ["nbdkit", "qemu-nbd", "nbd-server", "nbdcopy", "fio", "mkfs.xfs", "certtool"] if not shutil.which(tool)]
    if missing:
        parser.error(f"not installed: {', '.join(missing)}")
    if not (BIN / "nbd-export").exists():
        parser.error("cargo build --release first")

    (ROOT / "target").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "target", prefix="bench-") as name:
        scratch = pathlib.Path(name)
        mount = scratch / "xfs"
        mount.mkdir()
        image = scratch / "xfs.img"
        with open(image, "wb") as file:
            file.truncate(10 * GIB)
        run("mkfs.xfs", "-q", "-m", "reflink=1", image)
        run("mount", "-o", "loop", image, mount)
        try:
            data = mount / "data"
            with open(data, "wb") as file:
                for _ in range(SEQUENTIAL // (1 << 20)):
                    file.write(os.urandom(1 << 20))
            run("sync")
            bench = Bench(arguments.rounds, scratch)
            load = os.getloadavg()[0]
            if "sequential" in only:
                bench_sequential(bench, data)
            if "random" in only:
                bench_random(bench, data)
            if "direct" in only:
                bench_direct(bench, data, scratch)
            if "tls" in only:
                bench_tls(bench, data, scratch)
            if "client" in only:
                bench_client(bench, data)
            if "map" in only:
                bench_map(bench, scratch)
        finally:
            run("umount", mount)

    tools = [version("nbdkit", "--version"), version("qemu-nbd", "--version"), version("nbdcopy", "--version"), version("fio", "--version")]
    commit = run("git", "-C", ROOT, "rev-parse", "--short", "HEAD").strip()
    head = [
        BEGIN,
        f"Commit {commit}; {os.cpu_count()} processors, Linux {platform.release()}; {'; '.join(tools)}; nbd-server of the same Debian.",
        f"{arguments.rounds} alternating rounds; medians, in brackets the least and the most. Load average {load:.1f} at the start, {os.getloadavg()[0]:.1f} at the end.",
        "",
        "| target | wanted | found | |",
        "|---|---|---|---|",
        *bench.verdicts,
        "",
    ]
    text = "\n".join([*head, *bench.report, END])
    print(text)
    if arguments.write:
        page = ROOT / "docs/performance.md"
        old = page.read_text()
        before, rest = old.split(BEGIN)
        page.write_text(before + text + rest.split(END)[1])


if __name__ == "__main__":
    main()
