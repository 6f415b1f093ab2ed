"""How a process shuts itself in, before it runs code that nobody has read. Standard library only; see sandbox.py.

On Linux: a file system that holds the interpreter's library (read-only) and one empty writable folder in memory,
process, network and IPC namespaces of its own, a user that owns nothing, no capabilities and no way to new ones; or,
where there are no namespaces to be had, Landlock. Everywhere resource limits, and a filter of system calls that makes
them whole: the kernel counts memory and processor time by process, so there is no other process, and no memory but its.
"""

from __future__ import annotations

import os
import resource
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

NOBODY = 65534
WORK = "/answer"  # the only writable place, an empty file system in memory
# linux/sched.h, linux/mount.h, linux/prctl.h, linux/capability.h
NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = (1 << bit for bit in (17, 26, 27, 28, 29, 30))
RDONLY, NOSUID, NODEV, NOEXEC, REMOUNT, BIND, REC, PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
DETACH = 2
PDEATHSIG, DUMPABLE, SECCOMP, NO_NEW_PRIVS = 1, 4, 22, 38
CAPABILITY_VERSION_3 = 0x20080522
KILL, CPU_SPENT = 9, 24
# linux/landlock.h; the numbers of these calls are the same on every processor
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
READ_FILE, READ_DIR = 1 << 2, 1 << 3
# linux/seccomp.h, linux/bpf_common.h, linux/audit.h, asm/unistd_64.h, asm-generic/unistd.h (all little-endian)
LOAD, EQUAL, GREATER, AT_LEAST, HAS, RETURN = 0x20, 0x15, 0x25, 0x35, 0x45, 0x06
ALLOW, REFUSE = 0x7FFF0000, 0x00050000  # REFUSE + errno
THREAD, CLONE3 = 0x10000, 435
# What makes processes; what holds memory, or keys, that are no process's own and may outlive it: segments, semaphores
# and queues (System V and POSIX), files in memory, pages given to a pipe, io_uring. On x86_64, x32's twins of them too.
X86_64 = ((29, 31), (57, 58), (64, 71), (220, 220), (240, 240), (248, 250), (278, 278), (319, 319), (425, 425),
          (447, 447), (0x40000000, 0xFFFFFFFF))  # fmt: skip
GENERIC = ((75, 75), (180, 180), (186, 197), (217, 219), (279, 279), (425, 425), (447, 447))
# by machine: its number, that of clone, and what is refused
CALLS = {
    "x86_64": (0xC000003E, 56, X86_64),
    "aarch64": (0xC00000B7, 220, GENERIC),
    "riscv64": (0xC00000F3, 220, GENERIC),
    "loongarch64": (0xC0000102, 220, GENERIC),
}


def confine(kind: str, limits: dict[str, int], parent: int) -> None:
    """Returns in the confined process only; those around it wait for it and end as it ended, or as `parent` does.

    kind is "root" or "user" for namespaces made with a superuser's right or a user's own, "bubblewrap" where that
    tool stands around us already, "landlock" or "limits" where there is neither. Where it cannot be done, the process
    ends, and says why on standard error.
    """
    try:
        _confine(kind, limits, parent)
    except (OSError, AttributeError, ValueError) as error:
        os.write(2, f"{kind}: {error}"[:300].encode())
        os._exit(1)


def _confine(kind: str, limits: dict[str, int], parent: int) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)

    def call(name: str, *args: Any) -> None:
        if getattr(libc, name)(*args):
            raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")

    linux = sys.platform == "linux"
    os.umask(0o022)
    if linux:
        call("prctl", PDEATHSIG, KILL, 0, 0, 0)
        if kind != "bubblewrap" and os.getppid() != parent:  # it ended before that
            os._exit(1)
    uid = _free_uid() if os.getuid() == 0 else NOBODY
    if kind in ("root", "user"):
        _namespaces(kind, uid, call)
        uid = uid if kind == "root" else NOBODY
        _view(uid, call)
        _fork()  # the first process of the new process namespace: when it ends, all in it do
        os.chroot("/jail")  # nobody whose root is not its namespace's may make user namespaces
        os.chdir(WORK)
        if kind == "user":
            call("capset", (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)())
    if os.getuid() == 0 and kind in ("root", "landlock", "limits"):
        _become(uid)
    if linux:
        call("prctl", NO_NEW_PRIVS, 1, 0, 0, 0)
        call("prctl", DUMPABLE, 0, 0, 0, 0)
        call("prctl", PDEATHSIG, KILL, 0, 0, 0)  # again
    if kind == "landlock":
        _landlock(lambda *args: libc.syscall(*(ctypes.c_long(a) if isinstance(a, int) else a for a in args)))
    if kind in ("root", "user"):
        _fork()
    _limit(limits)
    if linux:
        try:
            _filter(call)
        except OSError:
            if kind != "limits":  # which promises no more than it has
                raise


def _become(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def _free_uid() -> int:
    """A user that nobody is, and nobody else here at the same time: what it starts can be counted, and limited."""
    with open("/proc/self/uid_map", encoding="ascii") as lines:
        inside, _, count = map(int, lines.readline().split())
    return (1 << 30) + os.getpid() if inside + count > 1 << 31 else NOBODY


def _namespaces(kind: str, uid: int, call: Callable[..., None]) -> None:
    mine = NEWNS | NEWUTS | NEWIPC | NEWPID | NEWNET
    if kind == "root":
        call("unshare", mine)
        return
    if os.getuid() == 0:
        _become(uid)
        call("prctl", DUMPABLE, 1, 0, 0, 0)  # or the maps below are not ours to write
        call("prctl", PDEATHSIG, KILL, 0, 0, 0)  # again, as a change of user takes it away
    user, group = os.getuid(), os.getgid()
    call("unshare", mine | NEWUSER)
    for name, text in (
        ("setgroups", "deny"), ("uid_map", f"{NOBODY} {user} 1"), ("gid_map", f"{NOBODY} {group} 1"),
    ):  # fmt: skip
        with open(f"/proc/self/{name}", "w", encoding="ascii") as out:
            out.write(text)


def _view(uid: int, call: Callable[..., None]) -> None:
    """A file system that holds the interpreter's library, read-only, and one empty writable folder."""
    paths = shown()
    call("mount", b"none", b"/", None, REC | PRIVATE, None)
    call("mount", b"none", b"/tmp", b"tmpfs", NOSUID | NODEV, b"size=1m,mode=755")
    os.chdir("/tmp")
    os.mkdir("old")
    os.mkdir("jail")
    call("pivot_root", b".", b"old")
    os.chdir("/")
    for path in paths:
        _show(path, call)
    os.mkdir("/jail" + WORK)
    options = f"size=64m,nr_inodes=4k,mode=700,uid={uid},gid={uid}"
    call("mount", b"none", ("/jail" + WORK).encode(), b"tmpfs", NOSUID | NODEV, options.encode())
    call("umount2", b"/old", DETACH)
    os.rmdir("/old")
    call("mount", None, b"/", None, REMOUNT | BIND | RDONLY | NOSUID | NODEV, None)


def shown() -> list[str]:
    """The folders that the interpreter needs: its own library, and shared ones (where these have a folder of their
    own, not what else lies beside it)."""
    kind = getattr(sys.implementation, "_multiarch", "")
    shared = [
        os.path.join(top, kind) if os.path.isdir(os.path.join(top, kind)) else top for top in ("/lib", "/usr/lib")
    ]
    own = {os.path.dirname(os.__file__)}
    own |= {os.path.join(prefix, "lib") for prefix in (sys.base_prefix, sys.base_exec_prefix) if prefix != "/usr"}
    paths: list[str] = []
    for path in (
        *shared,
        "/lib64",
        "/usr/lib64",
        "/nix/store",
        "/gnu/store",
        *sorted(map(os.path.realpath, own), key=len),
    ):
        if not any(path.startswith(other + "/") or path == other for other in paths):
            paths.append(path)
    return paths


def _show(path: str, call: Callable[..., None]) -> None:
    old, new = "/old" + path, "/jail" + path
    if os.path.islink(old):
        os.makedirs(os.path.dirname(new), exist_ok=True)
        os.symlink(os.readlink(old), new)
    elif os.path.isdir(old):
        os.makedirs(new, exist_ok=True)
        flags = os.statvfs(old).f_flag & (NOSUID | NODEV | NOEXEC)
        call("mount", old.encode(), new.encode(), None, BIND | REC, None)
        call("mount", None, new.encode(), None, REMOUNT | BIND | RDONLY | NOSUID | NODEV | flags, None)
        for packages in packages_in(new):  # there may be a benchmark's answers among them
            call("mount", b"none", packages.encode(), b"tmpfs", RDONLY | NOSUID | NODEV, b"size=4k")


def packages_in(folder: str) -> list[str]:
    """Where the interpreters of a folder keep what was installed."""
    pythons = [name for name in os.listdir(folder) if name.startswith("python")]
    if folder.rpartition("/")[2].startswith("python"):
        pythons.append(".")
    paths = (os.path.join(folder, name, kind) for name in pythons for kind in ("site-packages", "dist-packages"))
    return [os.path.normpath(path) for path in paths if os.path.isdir(path) and not os.path.islink(path)]


def _landlock(syscall: Callable[..., int]) -> None:
    """No files but those that `shown` names, and these to read. Where the kernel knows of them (landlock(7)), no TCP
    and no signals to others either; of processes it hides all in any case."""
    version = syscall(CREATE_RULESET, None, 0, 1)
    if version < 1:
        raise OSError("no Landlock")
    files = (1 << (13 if version < 2 else 14 if version < 3 else 15 if version < 5 else 16)) - 1
    handled = [files, *([3] if version >= 4 else []), *([3] if version >= 6 else [])]
    attributes = b"".join(number.to_bytes(8, sys.byteorder) for number in handled)
    ruleset = syscall(CREATE_RULESET, attributes, len(attributes), 0)
    for path in filter(os.path.isdir, shown()):
        hidden = packages_in(path)
        for access, part in ((READ_DIR, path), *((READ_FILE, part) for part in _without(path, hidden))):
            fd = os.open(part, os.O_PATH)
            rule = access.to_bytes(8, sys.byteorder) + fd.to_bytes(4, sys.byteorder)
            if syscall(ADD_RULE, ruleset, 1, rule, 0):
                raise OSError(f"Landlock takes no rule for {part}")
            os.close(fd)
    if syscall(RESTRICT_SELF, ruleset, 0):
        raise OSError("Landlock is refused")
    os.close(ruleset)


def _without(path: str, hidden: list[str]) -> list[str]:
    """The parts of a folder that together hold all but what is hidden."""
    inside = [other for other in hidden if other.startswith(path + "/")]
    if path in hidden or not os.access(path, os.R_OK):
        return []
    if not inside:
        return [path]
    return [part for name in os.listdir(path) for part in _without(os.path.join(path, name), inside + hidden)]


def _fork() -> None:
    """Go on in a child; the parent lets go of what it holds, and ends as the child does."""
    child = os.fork()
    if not child:
        return
    os.closerange(0, 64)
    pid = status = 0
    while pid != child:
        pid, status = os.waitpid(-1, 0)
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


def _limit(limits: dict[str, int]) -> None:
    for name, most in limits.items():
        number = getattr(resource, name, None)
        if number is not None and (name != "RLIMIT_AS" or sys.platform == "linux"):  # elsewhere it is not kept to
            hard = resource.getrlimit(number)[1]
            most = most if hard == resource.RLIM_INFINITY else min(most, hard)
            spare = 1 if name == "RLIMIT_CPU" and most != hard else 0  # for who does not end at the first signal
            resource.setrlimit(number, (most, most + spare))


def _filter(call: Callable[..., None]) -> None:
    """No process but this one, only threads of it, and no memory outside it: what RLIMIT_AS and RLIMIT_CPU count is
    then all that there is. Refused calls fail with EPERM; clone3, whose flags no filter can see, is said to be missing,
    and a C library then takes clone."""
    machine = CALLS.get(os.uname().machine)
    if machine is None or sys.maxsize < 1 << 32:
        raise OSError("no filter of system calls for this processor")
    import errno

    number, clone, refused = machine
    refuse = (RETURN, 0, 0, REFUSE + errno.EPERM)
    steps = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, number), refuse, (LOAD, 0, 0, 0)]  # seccomp_data: nr, arch, pointer, args
    for first, last in refused:
        steps += [(AT_LEAST, 0, 2, first), (GREATER, 1, 0, last), refuse]
    steps += [(EQUAL, 0, 1, CLONE3), (RETURN, 0, 0, REFUSE + errno.ENOSYS)]
    steps += [(EQUAL, 0, 3, clone), (LOAD, 0, 0, 16), (HAS, 1, 0, THREAD), refuse, (RETURN, 0, 0, ALLOW)]
    program = b"".join(code.to_bytes(2, "little") + bytes((yes, no)) + k.to_bytes(4, "little")
                       for code, yes, no, k in steps)  # fmt: skip
    import ctypes

    held = ctypes.create_string_buffer(program)
    call("prctl", SECCOMP, 2, len(steps).to_bytes(8, "little") + ctypes.addressof(held).to_bytes(8, "little"), 0, 0)
