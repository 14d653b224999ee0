"""The other side of sandbox.py: gives up every right it can, then runs the program it was sent. Started as a script.

It imports nothing of this project: it runs without site-packages, and its start is paid for with each program.
"""

import contextlib
import ctypes
import json
import os
import platform
import resource
import struct
import sys

# What a program may import is read now: the user it will be may not see this interpreter's folder.
for _name in (
    "array ast base64 binascii bisect calendar cmath collections copy csv dataclasses datetime decimal difflib enum "
    "fractions functools hashlib heapq inspect io itertools math numbers operator pprint queue random re secrets "
    "statistics string textwrap time types typing unicodedata warnings zlib"
).split():
    with contextlib.suppress(ImportError):
        __import__(_name)

_NOBODY = 65534
# Calls a computation needs, by number on x86-64 and on AArch64; all others are refused with EPERM.
_CALLS = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "fstat": (5, 80), "lseek": (8, 62), "mmap": (9, 222),
    "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214), "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "ioctl": (16, 29), "pread64": (17, 67), "readv": (19, 65),
    "writev": (20, 66), "sched_yield": (24, 124), "mremap": (25, 216), "madvise": (28, 233), "dup": (32, 23),
    "nanosleep": (35, 101), "getpid": (39, 172), "exit": (60, 93), "uname": (63, 160), "fcntl": (72, 25),
    "getcwd": (79, 17), "gettimeofday": (96, 169), "getrusage": (98, 165), "sysinfo": (99, 179), "times": (100, 153),
    "getuid": (102, 174), "getgid": (104, 176), "geteuid": (107, 175), "getegid": (108, 177), "getppid": (110, 173),
    "sigaltstack": (131, 132), "gettid": (186, 178), "futex": (202, 98), "getdents64": (217, 61),
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "clock_nanosleep": (230, 115), "exit_group": (231, 94),
    "newfstatat": (262, 79), "readlinkat": (267, 78), "set_robust_list": (273, 99), "getrandom": (318, 278),
    "statx": (332, 291), "rseq": (334, 293), "sched_getaffinity": (204, 123),
}  # fmt: skip
_OPENAT = (257, 56)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column of the table, AUDIT_ARCH


def seccomp_program(reading: bool) -> bytes | None:
    """Classic BPF over struct seccomp_data; None on a machine whose numbers are not known. `reading`: files, too."""
    if platform.machine() not in _MACHINES:
        return None
    column, architecture = _MACHINES[platform.machine()]
    load, equal, any_bit, give = 0x20, 0x15, 0x45, 0x06
    allow, refuse, kill = 0x7FFF0000, 0x00050001, 0x80000000

    def op(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("HBBI", code, yes, no, value)

    program = [op(load, 4), op(equal, architecture, 1, 0), op(give, kill), op(load, 0)]
    for numbers in _CALLS.values():
        program += [op(equal, numbers[column], 0, 1), op(give, allow)]
    if reading:  # openat(folder, name, flags): the lower half of the third argument is at 16 + 2 * 8
        program += [op(equal, _OPENAT[column], 0, 3), op(load, 32), op(any_bit, _WRITING, 1, 0), op(give, allow)]
    return b"".join([*program, op(give, refuse)])


def confine(layers: list[str]) -> set[str]:
    """Apply what can be had of "user", "namespace" and "seccomp"; returns what could."""
    if not sys.platform.startswith("linux"):
        return set()
    libc, done, root = ctypes.CDLL(None, use_errno=True), set(), os.geteuid() == 0
    new_user, network_ipc_name = 0x10000000, 0x40000000 | 0x08000000 | 0x04000000
    if "namespace" in layers and libc.unshare(network_ipc_name | (0 if root else new_user)) == 0:
        done.add("namespace")
    if "user" in layers and root:
        with contextlib.suppress(OSError):
            os.setgroups([])
            os.setresgid(_NOBODY, _NOBODY, _NOBODY)
            os.setresuid(_NOBODY, _NOBODY, _NOBODY)
            done.add("user")
    no_new_privileges = libc.prctl(38, 1, 0, 0, 0) == 0
    # The environment of a process is a file, open to its own user: no files, unless user or namespace are others.
    program = seccomp_program(reading=bool(done))
    if "seccomp" in layers and no_new_privileges and program is not None:
        code = ctypes.create_string_buffer(program)
        header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code)))
        if libc.prctl(22, 2, header, 0, 0) == 0:
            done.add("seccomp")
    return done


def main() -> None:
    """Read a job from standard input; answer "refused", or with the job's secret when it ran to its end."""
    job = json.load(sys.stdin.buffer)
    limits = {"AS": job["memory"], "CPU": job["seconds"], "FSIZE": 0, "NOFILE": 32, "CORE": 0, "NPROC": 0}
    for name, value in limits.items():
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
    done = confine(job["layers"])
    if "seccomp" not in done and not {"user", "namespace"} <= done and not job["unsafe"]:
        os.write(job["result"], b"refused")
        os._exit(1)
    try:
        exec(compile(job["program"], "program", "exec"), {"__name__": "program"})
    except BaseException:
        os._exit(1)  # whatever it raised, it failed; nobody reads what it printed
    os.write(job["result"], job["secret"].encode())
    os._exit(0)


if __name__ == "__main__":
    main()
