"""A server of SFTP, version 3, on its standard streams, with one oddity: `sftp.py ODDITY`.

  terse    says of the entries of a directory nothing but their names
  mute     the same, and of a file never how long it is
  endless  goes on with a listing for ever, without a name
  modeless cannot set attributes
  remote   has lost its own connection to the disk
"""
import os, stat, struct, sys

odd = sys.argv[1]
put, get = sys.stdout.buffer, sys.stdin.buffer
files, listed = {}, {}
OK, END, ABSENT, FAILURE, LOST, UNSUPPORTED = 0, 1, 2, 4, 7, 8


def text(b):
    return struct.pack(">I", len(b)) + b


def send(kind, ident, body):
    packet = bytes([kind]) + struct.pack(">I", ident) + body
    put.write(text(packet))
    put.flush()


def status(ident, code):
    send(101, ident, struct.pack(">I", code) + text(b"") + text(b""))


def attributes(found):
    if odd == "mute" and stat.S_ISREG(found.st_mode):
        return struct.pack(">II", 4, found.st_mode)
    return struct.pack(">IQI", 1 | 4, found.st_size, found.st_mode)


def answer(kind, ident, take):
    if kind == 16:
        path = take()
        send(104, ident, struct.pack(">I", 1) + text(path) + text(b"") + struct.pack(">I", 0))
    elif odd == "remote":
        status(ident, LOST)
    elif kind in (7, 17):
        send(105, ident, attributes((os.lstat if kind == 7 else os.stat)(take())))
    elif kind == 11:
        path = take()
        listed[path] = os.listdir(path)
        send(102, ident, text(path))
    elif kind == 12:
        names, path = [], take()
        if odd != "endless":
            names, listed[path] = listed[path], []
            if not names:
                return status(ident, END)
        body = b"".join(text(n) + text(b"") + struct.pack(">I", 0) for n in names)
        send(104, ident, struct.pack(">I", len(names)) + body)
    elif kind == 3:
        path, flags = take(), struct.unpack(">I", take(4))[0]
        files[path] = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC if flags & 2 else os.O_RDONLY, 0o600)
        send(102, ident, text(path))
    elif kind == 10:
        status(ident, UNSUPPORTED if odd == "modeless" else OK)
    elif kind == 5:
        handle, at, size = take(), struct.unpack(">Q", take(8))[0], struct.unpack(">I", take(4))[0]
        data = os.pread(files[handle], size, at)
        send(103, ident, text(data)) if data else status(ident, END)
    elif kind == 6:
        handle, at = take(), struct.unpack(">Q", take(8))[0]
        os.pwrite(files[handle], take(), at)
        status(ident, OK)
    elif kind == 8:
        found = os.fstat(files[take()])
        send(105, ident, struct.pack(">IQI", 1 | 4, found.st_size, found.st_mode))
    elif kind == 4:
        handle = take()
        if handle in files:
            os.close(files.pop(handle))
        status(ident, OK)
    elif kind == 13:
        os.remove(take())
        status(ident, OK)
    elif kind == 14:
        os.mkdir(take())
        status(ident, OK)
    elif kind == 18:
        old, new = take(), take()
        os.link(old, new)
        os.remove(old)
        status(ident, OK)
    else:
        status(ident, UNSUPPORTED)


while head := get.read(4):
    packet = get.read(struct.unpack(">I", head)[0])
    if packet[0] == 1:
        put.write(text(bytes([2]) + struct.pack(">I", 3)))
        put.flush()
        continue
    ident, rest = struct.unpack(">I", packet[1:5])[0], [packet[5:]]

    def take(size=None):
        if size is None:
            size = struct.unpack(">I", take(4))[0]
        taken, rest[0] = rest[0][:size], rest[0][size:]
        return taken

    try:
        answer(packet[0], ident, take)
    except FileNotFoundError:
        status(ident, ABSENT)
    except OSError:
        status(ident, FAILURE)
