#!/usr/bin/env python3
"""Measures backups: the disk's own speed, the whole pipeline against what people use today, what the host pays, increments, memory.

    cargo build --release --bins
    sudo nice -n -10 tests/bench/backup.py [--rounds N] [--only CASE,...] [--write]

Prints Markdown tables of medians, spreads and ratios; --write puts them into docs/performance.md, and a plot beside it. The host runs in
a network namespace of its own, at the other end of a veth pair, so that what it sends is counted by the kernel. Wants root, 8 GiB of disk
and 8 GiB of memory, and fio, zstd, qemu-utils, libnbd-bin, xfsprogs, iproute2.
"""

import argparse
import contextlib
import fcntl
import json
import os
import pathlib
import platform
import random
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time

from nbd import BIN, GIB, NOTHING, ROOT, run, version

MIB = 1 << 20
BEGIN, END = "<!-- backup: made by tests/bench/backup.py -->", "<!-- backup: end -->"
PAGE, PLOT = ROOT / "docs/performance.md", ROOT / "docs/performance-backup.svg"
LUN = "bench-lun"
# Of the range that RFC 2544 keeps for benchmarks.
HOST_ADDRESS, PROXY_ADDRESS, PORT = "198.18.77.1", "198.18.77.2", 10809
FICLONERANGE = 0x4020940D
FETCH = BIN / "bench-fetch"


class Finished:
    """A command that has ended well: how long it took, what it cost, and what it printed."""

    def __init__(self, command, **more):
        start = time.monotonic()
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            process = subprocess.Popen([str(word) for word in command], stdout=out, stderr=err, **more)
            _, status, usage = os.wait4(process.pid, 0)
            self.seconds = time.monotonic() - start
            process.returncode = os.waitstatus_to_exitcode(status)
            out.seek(0), err.seek(0)
            self.out = out.read().decode()
            if process.returncode != 0:
                sys.exit(f"{command}: exit code {process.returncode}\n{err.read().decode()}")
        # Of a shell also what it waited for.
        self.cpu = usage.ru_utime + usage.ru_stime
        self.resident = usage.ru_maxrss * 1024


class Site:
    """A LUN: a file, which the proxy reads, behind a loop device, on which the host has XFS; and the network between the two."""

    made = 0

    def __init__(self, scratch, size):
        self.scratch, self.mount, self.image = scratch, scratch / "xfs", scratch / "lun"
        # What the proxy, and fio, read.
        self.lun = self.image
        Site.made += 1
        self.name = f"vb{Site.made}x{os.getpid()}"
        self.undo = contextlib.ExitStack()
        try:
            self.set_up(size)
        except BaseException:
            self.undo.close()
            raise

    def set_up(self, size):
        with open(self.image, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
        self.device = run("losetup", "-f", "--show", "--direct-io=on", self.image).strip()
        self.undo.callback(run, "losetup", "-d", self.device)
        # What was never written is no read of the disk: the file system below gives zeroes without one.
        run("dd", "if=/dev/zero", f"of={self.device}", "bs=4M", "oflag=direct", f"count={size // (4 * MIB)}")
        run("mkfs.xfs", "-q", "-f", "-K", "-m", "reflink=1", self.device)
        self.mount.mkdir()
        run("mount", self.device, self.mount)
        self.undo.callback(run, "umount", self.mount)
        run("ip", "netns", "add", self.name)
        self.undo.callback(run, "ip", "netns", "del", self.name)
        self.link = f"{self.name}p"
        run("ip", "link", "add", self.link, "type", "veth", "peer", "name", "host", "netns", self.name)
        run("ip", "address", "add", f"{PROXY_ADDRESS}/30", "dev", self.link)
        run("ip", "link", "set", self.link, "up")
        inside = ["ip", "-n", self.name]
        run(*inside, "address", "add", f"{HOST_ADDRESS}/30", "dev", "host")
        run(*inside, "link", "set", "host", "up")

    def read_at_most(self, rate):
        """Lets this process, and what it starts, read no more bytes a second from the LUN: from now on by a block device of its own."""
        self.lun = run("losetup", "-f", "--show", "--direct-io=on", self.image).strip()
        self.undo.callback(run, "losetup", "-d", self.lun)
        number = os.stat(self.lun).st_rdev
        lines = [line.split(":", 2) for line in pathlib.Path("/proc/self/cgroup").read_text().splitlines()]
        mine = next((path for _, names, path in lines if "blkio" in names.split(",")), None) or next(path for _, names, path in lines if not names)
        root, limit, words = pathlib.Path("/sys/fs/cgroup/blkio"), "blkio.throttle.read_bps_device", f"{rate}"
        if not root.exists():
            root, limit, words = pathlib.Path("/sys/fs/cgroup"), "io.max", f"rbps={rate}"
            (root / "cgroup.subtree_control").write_text("+io")
        group = root / self.name
        group.mkdir()
        self.undo.callback(group.rmdir)
        (group / limit).write_text(f"{os.major(number)}:{os.minor(number)} {words}")
        (group / "cgroup.procs").write_text(str(os.getpid()))
        self.undo.callback(lambda: (root / mine[1:] / "cgroup.procs").write_text(str(os.getpid())))

    def sent_by_host(self):
        return int(pathlib.Path(f"/sys/class/net/{self.link}/statistics/rx_bytes").read_text())

    def forget_pages(self, path):
        for file in [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]:
            with open(file, "rb") as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Host:
    """nbd-export on volumes of the LUN."""

    def __init__(self, site, volumes, *more):
        self.site = site
        self.control = site.scratch / "control.sock"
        self.clones = site.mount / "clones"
        self.clones.mkdir(exist_ok=True)
        command = ["nsenter", f"--net=/run/netns/{site.name}", BIN / "nbd-export", "serve"]
        command += [f"{name}={path}" for name, path in volumes.items()]
        command += ["--freeze", "reflink", "--clone-dir", self.clones, "--control", self.control]
        command += ["--listen", f"{HOST_ADDRESS}:{PORT}", "--insecure-plaintext", "--identity", f"{site.device}={LUN}"]
        command += ["--state-dir", site.scratch / "state", *more]
        self.process = subprocess.Popen([str(word) for word in command], **NOTHING)
        for _ in range(3000):
            if self.process.poll() is not None:
                sys.exit(f"the host ended at once: {' '.join(map(str, command))}")
            with contextlib.suppress(OSError):
                socket.create_connection((HOST_ADDRESS, PORT), 1).close()
                return
            time.sleep(0.02)
        sys.exit("the host does not answer")

    def uri(self, export):
        return f"nbd://{HOST_ADDRESS}/{export}"

    def tell(self, verb, *words):
        return run(BIN / "nbd-export", verb, *words, "--control", self.control)

    def cpu(self):
        """CPU seconds of the process so far, to the nanosecond; nsenter became it."""
        return time.clock_gettime((~self.process.pid << 3) | 2)

    def resident(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


# ---- volumes ----


def noise(path, size):
    with open(path, "wb") as file:
        for _ in range(size // MIB):
            file.write(os.urandom(MIB))
        os.fsync(file.fileno())


def programs(path, size):
    """What this machine's programs and libraries are made of, some zeroes among it: data as it lies on disks."""
    left = size
    with open(path, "wb") as file:
        sources = (p for root in ["/usr/lib", "/usr/bin", "/usr/share"] for p in sorted(pathlib.Path(root).rglob("*")))
        for source in sources:
            if left == 0:
                break
            with contextlib.suppress(OSError):
                if source.is_file() and not source.is_symlink():
                    data = source.read_bytes()[: min(left, 32 * MIB)]
                    file.write(data)
                    left -= len(data)
        file.write(os.urandom(left))
        os.fsync(file.fileno())


def fragmented(path, size, piece, source):
    """`size` bytes in extents of `piece`, scattered at random over twice the space: clones of pieces of a file that goes then."""
    noise(source, 2 * size)
    places = random.Random(piece).sample(range(2 * size // piece), size // piece)
    with open(path, "wb") as file, open(source, "rb") as pieces:
        for index, place in enumerate(places):
            fcntl.ioctl(file, FICLONERANGE, struct.pack("qQQQ", pieces.fileno(), place * piece, piece, index * piece))
        os.fsync(file.fileno())
    source.unlink()


def sparse(path, size, pieces, piece):
    with open(path, "wb") as file:
        file.truncate(size)
        for index in range(pieces):
            file.seek(index * (size // pieces))
            file.write(os.urandom(piece))
        os.fsync(file.fileno())


def extents_on_lun(uri):
    """(volume offset, disk offset, length) of what lies on the LUN."""
    found = json.loads(run(BIN / "proxy-client", "info", f"--map=x-volmap:disk:id:{LUN}", "--json", uri))
    place = lambda extent: int(extent.get("status", extent.get("type", 0)))
    mapped = [(e["offset"], place(e), e["length"]) for e in found]
    return [(offset, status & ~(1 << 63), length) for offset, status, length in mapped if status >> 63]


# ---- contenders: each gives a dictionary of numbers ----


def fetch(site, host, export, size, direct):
    def contender():
        site.forget_pages(host.clones)
        cpu, sent = host.cpu(), site.sent_by_host()
        done = Finished([FETCH, host.uri(export), *([f"{LUN}={site.lun}"] if direct else [])])
        # The last packets are under way, and a connection is being closed.
        time.sleep(0.05)
        cpu, sent = host.cpu() - cpu, site.sent_by_host() - sent
        told = json.loads(done.out)
        wanted = "bytes_direct" if direct else "bytes_nbd"
        assert told[wanted] == size, f"not everything was read as it should be: {told}"
        gib = size / GIB
        return {"GiB/s": gib / told["seconds"], "CPU-s/GiB": done.cpu / gib, "host CPU-ms": cpu * 1000, "host bytes sent": sent}

    return contender


@contextlib.contextmanager
def huge_pages():
    """Keeps some huge pages back for fio, which does not ask for them as ours does."""
    count = pathlib.Path("/proc/sys/vm/nr_hugepages")
    before = count.read_text()
    count.write_text(str(int(before) + 32))
    try:
        yield
    finally:
        count.write_text(before)


def fio(site, extents, longest, depth, log, ring="io_uring", huge=False):
    """Reads of at most `longest` bytes each, in volume order, to memory as fio takes it or to huge pages."""
    total = 0
    with open(log, "w") as file:
        file.write(f"fio version 2 iolog\n{site.lun} add\n{site.lun} open\n")
        for _, place, length in extents:
            for at in range(0, length, longest):
                step = min(longest, length - at)
                file.write(f"{site.lun} read {place + at} {step}\n")
                total += step
        # What is in flight when the log ends, fio does not count.
        file.write(f"{site.lun} read {place} {min(longest, length)}\n" * (depth - 1))

    def contender():
        job = ["--name=x", f"--read_iolog={log}", f"--ioengine={ring}", f"--iodepth={depth}", "--direct=1"]
        job += ["--iomem=shmhuge"] if huge else []
        done = Finished(["fio", *job, "--output-format=json"])
        read = json.loads(done.out[done.out.index("{") :])["jobs"][0]["read"]
        gib = read["io_bytes"] / GIB
        assert read["io_bytes"] >= total * 0.99, f"fio read {read['io_bytes']} of {total}"
        return {"GiB/s": gib / (read["runtime"] / 1000), "CPU-s/GiB": done.cpu / gib}

    return contender


def engine(site, name, size, length, depth):
    """Reads at random places, `depth` of them in flight: as many threads, or one with a ring."""
    threads = depth if name == "psync" else 1

    def contender():
        job = ["--name=x", f"--filename={site.image}", f"--ioengine={name}", "--rw=randread", f"--bs={length}", "--direct=1", "--thread"]
        job += ["--iomem=shmhuge", f"--numjobs={threads}", f"--iodepth={depth // threads}", f"--size={4 * GIB}", f"--io_size={size // threads}"]
        done = Finished(["fio", *job, "--group_reporting", "--randrepeat=0", "--output-format=json"])
        read = json.loads(done.out[done.out.index("{") :])["jobs"][0]["read"]
        gib = read["io_bytes"] / GIB
        return {"GiB/s": gib / (read["runtime"] / 1000), "CPU-s/GiB": done.cpu / gib, "p99 ms": read["clat_ns"]["percentile"]["99.000000"] / 1e6}

    return contender


def command(site, size, out, evicted, *words, **more):
    def contender():
        out.unlink(missing_ok=True)
        if evicted:
            site.forget_pages(evicted)
        done = Finished(words, **more)
        stored = out.stat().st_size
        out.unlink()
        gib = size / GIB
        return {"GiB/s": gib / done.seconds, "CPU-s/GiB": done.cpu / gib, "stored": stored / size}

    return contender


def backup(site, host, export, out, *more):
    lun = ["--lun", f"{LUN}={site.lun}", "--host-is-this-machine", "--audit", "0", "--require-direct", "100"]
    return [BIN / "proxy-client", "backup", host.uri(export), "--output", out, *lun, "--json", *more]


class Bench:
    def __init__(self, rounds):
        self.rounds, self.report, self.verdicts, self.bars = rounds, [], [], []

    def compare(self, title, contenders, plotted="GiB/s"):
        """Runs every contender in every round; the medians."""
        found = {name: [] for name in contenders}
        # Once for nothing: some disks are fast for a while after a pause.
        for contender in contenders.values():
            contender()
        for number in range(self.rounds):
            # To and fro, so that who comes first does not always come first.
            for name in list(contenders)[:: -1 if number % 2 else 1]:
                found[name].append(contenders[name]())
            print(f"{title}: round {number + 1}/{self.rounds}", file=sys.stderr)
        keys = list(dict.fromkeys(key for rows in found.values() for key in rows[0]))
        self.report += [f"### {title}", "", "| | " + " | ".join(keys) + " |", "|---|" + "---|" * len(keys)]
        for name, rows in found.items():
            cells = []
            for key in keys:
                values = sorted(row[key] for row in rows if key in row)
                cells.append(f"{number_of(statistics.median(values))} ({number_of(values[0])}–{number_of(values[-1])})" if values else "")
            self.report.append(f"| {name} | " + " | ".join(cells) + " |")
        self.report.append("")
        medians = {name: {key: statistics.median(r[key] for r in rows) for key in rows[0]} for name, rows in found.items()}
        if plotted:
            self.bars.append((title, [(name, row[plotted]) for name, row in medians.items()]))
        return medians

    def target(self, what, ours, target, at_least=True):
        met = ours >= target if at_least else ours <= target
        self.verdicts.append(f"| {what} | {'≥' if at_least else '≤'} {target:g} | {ours:.3g} | {'met' if met else '**missed**'} |")

    def told(self, what, found):
        self.verdicts.append(f"| {what} | | {found} | |")


def number_of(value):
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


# ---- the cases ----


def reads(bench, site, host, export, what, size, at_least):
    """Ours against fio and against ourselves over NBD, on one volume."""
    extents = extents_on_lun(host.uri(export))
    assert sum(length for _, _, length in extents) == size
    contenders = {"ours, direct": fetch(site, host, export, size, True), "ours, over NBD": fetch(site, host, export, size, False)}
    longest_extent = max(length for _, _, length in extents)
    for longest, depth in [(MIB, 4), (MIB, 16), (256 << 10, 16), (256 << 10, 64)]:
        # Short extents are read as they are, so that only the depth makes a difference.
        if longest == MIB or longest_extent > longest or depth == 64:
            for huge in [False, True]:
                name = f"fio, reads of {min(longest, longest_extent) >> 10} KiB, {depth} in flight{', to huge pages' if huge else ''}"
                log = site.scratch / f"{export}-{longest}-{depth}.log"
                contenders[name] = fio(site, extents, longest, depth, log, huge=huge)
    title = f"Reading {what}: {len(extents):,} extents"
    contenders["start-up (ours, 1 MiB)"] = fetch(site, host, "tiny", MIB, True)
    found = bench.compare(title, contenders)
    ours, nbd, start = found["ours, direct"], found["ours, over NBD"], found["start-up (ours, 1 MiB)"]
    del bench.bars[-1][1][-1]
    apart = max(ours["host CPU-ms"] - start["host CPU-ms"], 0) / nbd["host CPU-ms"]
    best = max(row["GiB/s"] for name, row in found.items() if name.startswith("fio"))
    plain = max(row["GiB/s"] for name, row in found.items() if name.startswith("fio") and "huge" not in name)
    name = f"reading {what}, validation included: speed / best fio"
    bench.told(f"{name} in memory as it takes it", f"{ours['GiB/s'] / plain:.3g}")
    if at_least:
        bench.target(name, ours["GiB/s"] / best, at_least)
        bench.target(f"reading {what}: host CPU, direct / over NBD", ours["host CPU-ms"] / nbd["host CPU-ms"], 0.01, False)
        bench.target(f"reading {what}: host CPU, direct / over NBD, start-up apart", apart, 0.01, False)
        bench.target(f"reading {what}: bytes sent by the host, direct / over NBD", ours["host bytes sent"] / nbd["host bytes sent"], 0.001, False)
    else:
        bench.told(name, f"{ours['GiB/s'] / best:.3g}")
        bench.told(f"reading {what}: host CPU, direct / over NBD, start-up apart", f"{apart:.3g}")
        bench.told(f"reading {what}: bytes sent by the host an extent", f"{ours['host bytes sent'] / len(extents):.3g}")


def bench_read(bench, site):
    volume, tiny = site.mount / "noise", site.mount / "tiny"
    noise(volume, 4 * GIB)
    noise(tiny, MIB)
    with Host(site, {"noise": volume, "tiny": tiny}) as host:
        reads(bench, site, host, "noise", "4 GiB that is not fragmented", 4 * GIB, 0.97)
    volume.unlink()


def bench_fragments(bench, site):
    sizes = {"1m": (MIB, 4 * GIB, 0.97), "64k": (64 << 10, 512 * MIB, None), "4k": (4 << 10, 128 * MIB, None)}
    volumes = {"tiny": site.mount / "tiny"}
    noise(volumes["tiny"], MIB)
    for name, (piece, size, _) in sizes.items():
        volumes[name] = site.mount / f"fragments-{name}"
        fragmented(volumes[name], size, piece, site.mount / "source")
    run("sync", "-f", site.mount)
    with Host(site, volumes) as host:
        for name, (piece, size, at_least) in sizes.items():
            what = f"{size // MIB} MiB in pieces of {piece >> 10} KiB"
            reads(bench, site, host, name, what, size, at_least)
    for volume in volumes.values():
        volume.unlink()


def bench_steady(bench, memory):
    """A LUN in memory that gives so much a second and no more: what is lost here is lost by pauses between reads."""
    size, rate = 512 * MIB, 512 * MIB
    scratch = memory / "steady"
    scratch.mkdir()
    site = Site(scratch, 3 * GIB)
    with site.undo:
        volumes = {"whole": site.mount / "noise", "pieces": site.mount / "fragments"}
        noise(volumes["whole"], size)
        fragmented(volumes["pieces"], size, MIB, site.mount / "source")
        with Host(site, volumes) as host:
            site.read_at_most(rate)
            for export, what in [("whole", "not fragmented"), ("pieces", "in pieces of 1024 KiB")]:
                extents = extents_on_lun(host.uri(export))
                # What io_uring tries without waiting, and then again, is counted twice by this limit.
                rows = {"ours, direct": fetch(site, host, export, size, True)}
                for depth in [4, 16]:
                    rows[f"fio, libaio, reads of 1024 KiB, {depth} in flight"] = fio(site, extents, MIB, depth, scratch / f"{export}-{depth}.log", "libaio")
                what = f"{size // MIB} MiB, {what}, from a LUN that gives {rate // MIB} MiB/s"
                found = bench.compare(f"Reading {what}", rows)
                ours = found.pop("ours, direct")["GiB/s"]
                bench.target(f"reading {what}: speed / best fio", ours / max(row["GiB/s"] for row in found.values()), 0.97)
                bench.told(f"reading {what}: speed / what it gives", f"{ours * GIB / rate:.3g}")
    shutil.rmtree(scratch)


def bench_engines(bench, site):
    for length, depth, size in [(MIB, 4, GIB), (64 << 10, 16, 512 * MIB), (4 << 10, 16, 64 * MIB)]:
        what = f"reads of {length >> 10} KiB, {depth} in flight"
        rows = {"threads (pread)": engine(site, "psync", size, length, depth), "io_uring": engine(site, "io_uring", size, length, depth)}
        found = bench.compare(f"Engines, by fio: {what}", rows)
        bench.told(f"{what}: speed of threads / io_uring, by fio", f"{found['threads (pread)']['GiB/s'] / found['io_uring']['GiB/s']:.3g}")


def bench_whole(bench, site, memory):
    size = 512 * MIB
    volume = site.mount / "programs"
    programs(volume, size)
    out = memory / "image"
    with Host(site, {"programs": volume}) as host:
        uri, clones = host.uri("programs"), host.clones
        on_file = {
            "ours, direct": command(site, size, out, clones, *backup(site, host, "programs", out)),
            "zstd -1 -T2, the file in the page cache": command(site, size, out, None, "sh", "-c", f"zstd -q -1 -T2 -c {volume} > {out}"),
            "zstd -1 -T2, the file on the disk": command(site, size, out, volume, "sh", "-c", f"zstd -q -1 -T2 -c {volume} > {out}"),
            "nbdcopy, zstd -1 -T2": command(site, size, out, clones, "sh", "-c", f"nbdcopy {uri} - | zstd -q -1 -T2 -c > {out}"),
            "qemu-img convert -c": command(site, size, out, clones, "qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", uri, out),
            "qemu-img convert -c, with zstd": command(
                site, size, out, clones, "qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "compression_type=zstd", uri, out
            ),
        }
        # Once for nothing, so that the file is in the page cache.
        subprocess.run(["cat", volume], stdout=subprocess.DEVNULL, check=True)
        found = bench.compare(f"Whole backup of {size // MIB} MiB of programs, to memory", on_file)
    volume.unlink()
    speed = {name: row["GiB/s"] for name, row in found.items()}
    ours = speed.pop("ours, direct")
    bench.target("whole backup: speed / zstd -1 -T2 alone, from the page cache", ours / speed["zstd -1 -T2, the file in the page cache"], 0.9)
    bench.target("whole backup: speed / zstd -1 -T2 alone, from the disk", ours / speed["zstd -1 -T2, the file on the disk"], 0.9)
    bench.target("whole backup: speed / qemu-img convert -c", ours / speed["qemu-img convert -c"], 1.5)
    bench.told("whole backup: speed / qemu-img convert -c with zstd", f"{ours / speed['qemu-img convert -c, with zstd']:.3g}")
    bench.told("whole backup: speed / nbdcopy, zstd -1 -T2", f"{ours / speed['nbdcopy, zstd -1 -T2']:.3g}")


def bench_incremental(bench, site, memory):
    size = GIB
    tiny = site.mount / "tiny"
    noise(tiny, MIB)
    for what, piece, wanted in [("runs of 1 MiB", MIB, 0.02), ("scattered blocks of 4 KiB", 4096, None)]:
        volume = site.mount / "live"
        noise(volume, size)
        with Host(site, {"live": volume, "tiny": tiny}, "--no-freeze", "--keep-for-incremental") as host:
            images = {name: memory / name for name in ["mon", "out"]}
            host.tell("freeze", "tiny", "--as", "mon")
            host.tell("freeze", "live", "--as", "mon")
            Finished(backup(site, host, "live@mon", images["mon"]))
            host.tell("thaw", "live@mon")
            with open(volume, "r+b") as file:
                for place in random.Random(piece).sample(range(size // piece), size // 100 // piece):
                    file.seek(place * piece)
                    file.write(os.urandom(piece))
                os.fsync(file.fileno())
            host.tell("freeze", "live", "--as", "tue")
            parent = ["--parent", images["mon"]]

            def contender(export, *more):
                measure = command(site, size, images["out"], None, *backup(site, host, export, images["out"], *more))

                def measured():
                    row = measure()
                    gib = size / GIB
                    return {"seconds": gib / row["GiB/s"], "MiB stored": row["stored"] * size / MIB, "CPU-s": row["CPU-s/GiB"] * gib}

                return measured

            rows = {"full": contender("live@tue"), "1 % changed": contender("live@tue", *parent), "start-up (1 MiB in full)": contender("tiny@mon")}
            found = bench.compare(f"Incremental of 1 GiB, 1 % changed in {what}", rows, "seconds")
            for image in images.values():
                image.unlink(missing_ok=True)
        volume.unlink()
        start = found["start-up (1 MiB in full)"]["seconds"]
        share = max(found["1 % changed"]["seconds"] - start, 0) / found["full"]["seconds"]
        name = f"incremental, 1 % changed in {what}, start-up apart: time / full"
        if wanted:
            bench.target(name, share, wanted, False)
        else:
            bench.told(name, f"{share:.3g}")
            bench.told("the same: bytes stored / bytes changed", f"{found['1 % changed']['MiB stored'] / (size / 100 / MIB):.3g}")


def bench_memory(bench, site, memory):
    cases = {"1 GiB, dense": (GIB, None), "1 GiB of data in pieces of 128 KiB": (2 * GIB, (8192, 128 << 10)), "1 TiB, 1 GiB of data in 16,384 pieces of 64 KiB": (1 << 40, (16_384, 64 << 10))}
    found = {}
    for name, (size, pieces) in cases.items():
        volume, out = site.mount / "volume", memory / "image"
        noise(volume, size) if pieces is None else sparse(volume, size, *pieces)
        with Host(site, {"volume": volume}) as host:
            done = Finished(backup(site, host, "volume", out))
            found[name] = (done.resident / MIB, host.resident() / MIB, done.seconds, out.stat().st_size / MIB)
        out.unlink()
        volume.unlink()
    bench.report += ["### Resident memory, at most (one run)", "", "| | proxy MiB | host MiB | seconds | image MiB |", "|---|---|---|---|---|"]
    bench.report += [f"| {name} | " + " | ".join(number_of(v) for v in row) + " |" for name, row in found.items()] + [""]
    for name, row in found.items():
        bench.target(f"resident memory of the proxy, MiB: {name}", row[0], 256, False)


# ---- the plot ----


def plot(bars):
    """Bars of medians, one panel for each case; ours dark."""
    width, label, line = 900, 330, 20
    parts, y = [], 10
    for title, rows in bars:
        unit = "seconds, less is better" if title.startswith("Incremental") else "GiB/s"
        parts.append(f'<text x="10" y="{y + 14}" class="t">{escaped(title)} ({unit})</text>')
        y += 22
        most = max(value for _, value in rows)
        for name, value in rows:
            length = max(1, round((width - label - 90) * value / most))
            kind = "o" if name.startswith("ours") or "changed" in name or name == "full" else "p"
            parts.append(f'<text x="{label - 8}" y="{y + 14}" class="l">{escaped(name)}</text>')
            parts.append(f'<rect x="{label}" y="{y + 3}" width="{length}" height="14" class="{kind}"/>')
            parts.append(f'<text x="{label + length + 6}" y="{y + 14}">{value:.3g}</text>')
            y += line
        y += 14
    style = "text{font:12px sans-serif;fill:#222}.t{font-weight:bold}.l{text-anchor:end}.o{fill:#1f5f99}.p{fill:#b8b8b8}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y}" viewBox="0 0 {width} {y}">'
    return "\n".join([head, f"<style>{style}</style>", f'<rect width="{width}" height="{y}" fill="#fff"/>', *parts, "</svg>", ""])


def escaped(text):
    return text.replace("&", "&amp;").replace("<", "&lt;")


CASES = ["steady", "read", "fragments", "engines", "whole", "incremental", "memory"]
TOOLS = ["fio", "zstd", "qemu-img", "nbdcopy", "mkfs.xfs", "ip", "nsenter", "losetup"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default=",".join(CASES), help=f"of {', '.join(CASES)}")
    parser.add_argument("--scratch", default=ROOT / "target", help="a directory on the disk that is to be the LUN")
    parser.add_argument("--write", action="store_true", help="put the result into docs/performance.md")
    arguments = parser.parse_args()
    only = arguments.only.split(",")
    if unknown := set(only) - set(CASES):
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    if os.geteuid() != 0:
        parser.error("loop devices and network namespaces want root")
    if missing := [tool for tool in TOOLS if not shutil.which(tool)]:
        parser.error(f"not installed: {', '.join(missing)}")
    if not (BIN / "nbd-export").exists() or not FETCH.exists():
        parser.error("cargo build --release --bins first")

    load = os.getloadavg()[0]
    bench = Bench(arguments.rounds)
    with (
        tempfile.TemporaryDirectory(dir=arguments.scratch, prefix="bench-") as name,
        tempfile.TemporaryDirectory(dir="/dev/shm", prefix="bench-") as memory,
    ):
        memory = pathlib.Path(memory)
        if "steady" in only:
            bench_steady(bench, memory)
        site = Site(pathlib.Path(name), 10 * GIB)
        with site.undo, huge_pages():
            if "read" in only:
                bench_read(bench, site)
            if "fragments" in only:
                bench_fragments(bench, site)
            if "engines" in only:
                bench_engines(bench, site)
            if "whole" in only:
                bench_whole(bench, site, memory)
            if "incremental" in only:
                bench_incremental(bench, site, memory)
            if "memory" in only:
                bench_memory(bench, site, memory)

    tools = [version(tool, "--version") for tool in ["fio", "zstd", "qemu-img", "nbdcopy"]]
    commit = run("git", "-C", ROOT, "rev-parse", "--short", "HEAD").strip()
    head = [
        BEGIN,
        f"Commit {commit}; {os.cpu_count()} processors, Linux {platform.release()}; {'; '.join(tools)}.",
        f"{arguments.rounds} alternating rounds; medians, in brackets the least and the most. Others worked on the machine at the same time: load"
        f" average {load:.1f} at the start, {os.getloadavg()[0]:.1f} at the end.",
        "",
        "![Medians of every case](performance-backup.svg)",
        "",
        "| target | wanted | found | |",
        "|---|---|---|---|",
        *bench.verdicts,
        "",
    ]
    text = "\n".join([*head, *bench.report, END])
    print(text)
    if arguments.write:
        before, rest = PAGE.read_text().split(BEGIN)
        PAGE.write_text(before + text + rest.split(END)[1])
        PLOT.write_text(plot(bench.bars))


if __name__ == "__main__":
    main()
