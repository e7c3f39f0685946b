#!/usr/bin/env python3
"""Odd data for a ChromaDB server, and what it holds: `chroma.py [--v1] URL COMMAND`.

seed            fill an empty server: 3 tenants, all spaces, a collection past the threshold at which
                vectors leave SQLite for the index files, and every odd value that the server takes
dump            canonical JSON of everything: two servers of 1.x with the same files print the same bytes
nearest         canonical JSON of the nearest ids for fixed vectors: what the index says, not SQLite;
                the same for a copy, a little different for an index that was built anew
clear           delete every collection
hammer SECONDS  write and delete without a pause; prints `writing` after the first write, at the end
                (also by TERM) what it did
compare A B     two dumps (files; URL is `-`): equal, with embeddings as near as 1e-5

--v1 speaks the old API, which 0.6.3 has beside v2 and 1.x no longer has. What finds something by
its name is broken there, so that lists are asked of v2 all the same. Nothing but the standard library
is needed.

What could go wrong
- There is no way to list tenants: `dump` looks for the ones of TENANTS.
- A vector may change in its last bit: 0.6.3 tells what it was given until the server is started
  again, and an import of an export from the cosine space is normalised once more. Rounding would hide
  that of most numbers, not of all; hence `compare`.
- `add` of an id that is there is ignored silently: `seed` refuses a server that has data.
"""

import http.client
import json
import operator
import random
import signal
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

# Tenant and database; the first is there in every server.
TENANTS = [
    ("default_tenant", "default_database"),
    ("second-tenant", "second_database"),
    ("Mandant é 2", "third.database"),
]


class Refused(Exception):
    def __init__(self, status, text):
        super().__init__(f"{status}: {text}")
        self.status = status


class Server:
    def __init__(self, url, v1=False):
        self.url = url.rstrip("/")
        self.v1 = v1

    def call(self, method, path, body=None, version=None, again=False):
        version = version or (1 if self.v1 else 2)
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/api/v{version}{path}", data, method=method)
        request.add_header("Content-Type", "application/json")
        try:
            return self.answer(request, again or method == "GET")
        except urllib.error.HTTPError as e:
            raise Refused(e.code, f"{method} {path}: {e.read().decode(errors='replace')[:400]}") from None

    def answer(self, request, again):
        """What may be said twice is said again: on a busy machine a server now and then loses a request without a word."""
        for left in reversed(range(4 if again else 1)):
            try:
                with urllib.request.urlopen(request, timeout=30 if left else 120) as answer:
                    return json.loads(answer.read() or b"null")
            except OSError as e:
                # While the request is sent it comes wrapped.
                if not left or not isinstance(getattr(e, "reason", e), TimeoutError):
                    raise

    def old(self):
        """Whether it is a 0.x, which keeps the space of a collection in the metadata."""
        return self.call("GET", "/version").startswith("0.")

    def make_tenant(self, tenant, database):
        self.call("POST", "/tenants", {"name": tenant})
        path = f"/databases?tenant={quote(tenant)}" if self.v1 else f"/tenants/{quote(tenant)}/databases"
        self.call("POST", path, {"name": database})

    def list(self, path):
        return self.call("GET", path, version=2)

    def databases(self, tenant):
        try:
            self.list(f"/tenants/{quote(tenant)}")
        except Refused:
            return []
        return sorted(d["name"] for d in self.list(f"/tenants/{quote(tenant)}/databases"))

    def collections(self, tenant, database):
        found = []
        while page := self.list(f"{within(tenant, database)}?limit=100&offset={len(found)}"):
            found += page
        return sorted((Collection(self, tenant, database, c) for c in found), key=lambda c: c.name)

    def make(self, tenant, database, name, space=None, metadata=None, legacy=False, again=False):
        body = {"name": name, "metadata": metadata, "get_or_create": again}
        if space and (legacy or self.old()):
            body["metadata"] = {**(metadata or {}), "hnsw:space": space}
        elif space:
            body["configuration"] = {"hnsw": {"space": space}}
        path = within(tenant, database)
        if self.v1:
            path = f"/collections?tenant={quote(tenant)}&database={quote(database)}"
        return Collection(self, tenant, database, self.call("POST", path, body, again=again))


class Collection:
    def __init__(self, server, tenant, database, facts):
        self.server, self.tenant, self.facts, self.name = server, tenant, facts, facts["name"]
        if server.v1:
            self.path = f"/collections/{facts['id']}"
        else:
            self.path = f"{within(tenant, database)}/{facts['id']}"

    def call(self, verb, body):
        """All of them may be said twice: `add` ignores what is there, and records are deleted by their names."""
        return self.server.call("POST", f"{self.path}/{verb}", body, again=True)

    def count(self):
        return self.server.call("GET", f"{self.path}/count")

    def space(self):
        """Where it is told depends on the version that made the collection; metadata come first."""
        metadata, told = self.facts.get("metadata") or {}, self.facts.get("configuration_json") or {}
        hnsw = told.get("hnsw") or told.get("hnsw_configuration") or {}
        return metadata.get("hnsw:space") or hnsw.get("space") or "l2"


def quote(name):
    return urllib.parse.quote(name, safe="")


def within(tenant, database):
    """Path of the collections of a database, in v2."""
    return f"/tenants/{quote(tenant)}/databases/{quote(database)}/collections"


def vectors(seed, count, dimension):
    """The same at each call. They lie near a space of 6 dimensions, as those of real texts lie in one of few: among
    vectors without any order an index finds other neighbours each time that it is opened."""
    basis = random.Random(dimension)
    columns = [[basis.uniform(-1, 1) for _ in range(6)] for _ in range(dimension)]
    rnd = random.Random(seed)
    found = []
    for _ in range(count):
        place = [rnd.uniform(-1, 1) for _ in range(6)]
        found.append([round(sum(map(operator.mul, place, column)), 4) for column in columns])
    return found


def fill(collection, count, dimension):
    """Plain records with a document and metadata of every type, in batches that every server takes."""
    embeddings = vectors(f"{collection.tenant} {collection.name}", count, dimension)
    for first in range(0, count, 500):
        span = range(first, min(first + 500, count))
        collection.call("add", {
            "ids": [f"{collection.name}-{i:05}" for i in span],
            "embeddings": [embeddings[i] for i in span],
            "documents": [f"Document {i} of {collection.name}: Grüße, {'words ' * (i % 9)}" for i in span],
            "metadatas": [
                {"source": f"file-{i % 17}.md", "page": i, "score": i / 7, "checked": i % 3 == 0} for i in span
            ],
        })


def odd_records(old):
    """Id, document, metadata, uri: one record for each odd value."""
    records = [
        # A server of 1.5.9 that is opened on the files of 0.6.3 panics over the first such record that
        # is not yet in an index.
        ("no document", None, {"a": 1}, None),
        ("no metadata", "text", None, None),
        ("neither", None, None, None),
        ("empty document", "", {"empty": ""}, None),
        ("int", "2**53+1", {"n": 2**53 + 1, "m": -(2**53) - 1}, None),
        ("int max", "2**63-1", {"n": 2**63 - 1}, None),
        ("int min", "-2**63", {"n": -(2**63)}, None),
        ("float", "floats", {"a": 0.1, "b": 1e308, "c": 5e-324, "d": -0.0, "e": 3.0}, None),
        ("bool", "booleans", {"yes": True, "no": False}, None),
        ("ünïcode 表 😀", "é 表 😀 \u202e right to left", {"schlüssel ü": "wert 表"}, None),
        ("line\nbreak\t'\"\\;--", "a\r\nb\tc\\ \"q\" 'q' \u2028", {"a\nb": "c\r\nd"}, None),
        ("x" * 500, "long " * 20000, {"long": "y" * 20000}, None),
        ("uri", None, {"a": 1}, "file:///srv/a%20b?c=d#e"),
        (" ", " ", {" ": " "}, None),
    ]
    if not old:
        records.append(("list", "lists", {"words": ["a", "é"], "numbers": [1, 2**53 + 1], "f": [0.5]}, None))
    return records


def seed(server):
    old = server.old()
    if server.collections(*TENANTS[0]):
        sys.exit("this server has data already")
    for tenant, database in TENANTS[1:]:
        server.make_tenant(tenant, database)
    first = TENANTS[0]
    metadata = {"owner": "tests", "n": 2**53 + 1, "ratio": 0.1, "on": True, "titel": "Grüße"}
    fill(server.make(*first, "documents", "cosine", metadata), 2500, 48)
    fill(server.make(*first, "l2-vectors", "l2"), 1200, 32)
    fill(server.make(*first, "inner_product", "ip"), 50, 4)
    fill(server.make(*first, "legacy.space", "cosine", legacy=True), 30, 4)
    server.make(*first, "empty", "cosine", {"nothing": "in it"})
    odd = server.make(*first, "odd")
    for i, (name, document, meta, uri) in enumerate(odd_records(old)):
        odd.call("add", {
            "ids": [name],
            "embeddings": vectors(f"odd {i}", 1, 3),
            "documents": [document],
            "metadatas": [meta],
            "uris": [uri],
        })
    # After the index was written, so that it holds vectors that are gone, and SQLite the newer ones.
    changed = server.make(*first, "changed", "l2")
    fill(changed, 1100, 8)
    changed.call("delete", {"ids": [f"changed-{i:05}" for i in range(0, 1100, 5)]})
    span = range(1, 1100, 10)
    changed.call("update", {
        "ids": [f"changed-{i:05}" for i in span],
        "embeddings": vectors("moved", len(span), 8),
        "documents": [f"changed {i}" for i in span],
        "metadatas": [{"page": -i, "new": "yes"} for i in span],
    })
    changed.call("upsert", {
        "ids": ["changed-00000", "changed-00002", "new"],
        "embeddings": vectors("upserted", 3, 8),
        "documents": ["back again", "overwritten", "new"],
        "metadatas": [{"a": 1}, {"a": 2}, {"a": 3}],
    })
    # The name of a collection is its own in every database.
    fill(server.make(*TENANTS[1], "documents", "l2"), 120, 16)
    server.make(*TENANTS[1], "empty")
    fill(server.make(*TENANTS[2], "documents", "cosine"), 40, 4)


def records(collection):
    """All of them, sorted by id."""
    found = []
    while True:
        page = collection.call("get", {
            "limit": 500, "offset": len(found), "include": ["embeddings", "documents", "metadatas", "uris"],
        })
        if not page["ids"]:
            return sorted(found, key=lambda r: r["id"])
        for i, name in enumerate(page["ids"]):
            found.append({
                "id": name,
                "document": page["documents"][i],
                "metadata": page["metadatas"][i],
                "uri": (page.get("uris") or [None] * len(page["ids"]))[i],
                "embedding": [round(x, 6) for x in page["embeddings"][i]],
            })


def each(server):
    """Tenant, database and collection, in order."""
    for tenant, _ in TENANTS:
        for database in server.databases(tenant):
            yield tenant, database, server.collections(tenant, database)


def dump(server):
    return [
        {
            "tenant": tenant,
            "database": database,
            "collections": [
                {
                    "name": c.name,
                    "metadata": c.facts.get("metadata"),
                    "space": c.space(),
                    "count": c.count(),
                    "records": records(c),
                }
                for c in collections
            ],
        }
        for tenant, database, collections in each(server)
    ]


def nearest(server):
    found = []
    for tenant, database, collections in each(server):
        for c in collections:
            some = c.call("get", {"limit": 1, "include": ["embeddings"]})["embeddings"]
            if some:
                asked = vectors("asked", 5, len(some[0]))
                body = {"query_embeddings": asked, "n_results": min(10, c.count()), "include": ["distances"]}
                ids = c.call("query", body)["ids"]
                found.append({"tenant": tenant, "database": database, "collection": c.name, "ids": ids})
    return found


def clear(server):
    for tenant, database, collections in each(server):
        for c in collections:
            server.call("DELETE", f"{within(tenant, database)}/{quote(c.name)}")


def hammer(server, seconds):
    """An end by TERM is a good end. A server that is away for a while is asked again."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    end, turn, away = time.monotonic() + seconds, 0, 0
    try:
        while time.monotonic() < end:
            try:
                collection = server.make(*TENANTS[0], "hammer", again=True)
                first = turn * 100
                collection.call("upsert", {
                    "ids": [f"h{i}" for i in range(first, first + 200)],
                    "embeddings": vectors(turn, 200, 64),
                    "documents": [f"turn {turn}, record {i}" for i in range(200)],
                    "metadatas": [{"turn": turn}] * 200,
                })
                collection.call("delete", {"ids": [f"h{i}" for i in range(first - 300, first - 250) if i >= 0] or ["-"]})
                turn += 1
                if turn == 1:
                    print("writing", flush=True)
            except (OSError, http.client.HTTPException, Refused) as e:
                away += 1
                if turn == 0:
                    sys.exit(f"the first write failed: {e}")
                time.sleep(0.1)
    finally:
        print(f"turns={turn} failed={away}", flush=True)


def difference(a, b, where=""):
    """The first difference of two dumps, or nothing."""
    if isinstance(a, float) and isinstance(b, float) and where.rsplit(".", 1)[0].endswith(".embedding"):
        return None if abs(a - b) <= 1e-5 else f"{where}: {a} and {b}"
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        pairs = [(k, a[k], b[k]) for k in a]
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        pairs = [(i, a[i], b[i]) for i in range(len(a))]
    else:
        same = type(a) is type(b) and a == b
        return None if same else f"{where}: {str(a)[:200]} and {str(b)[:200]}"
    return next((d for k, x, y in pairs if (d := difference(x, y, f"{where}.{k}"))), None)


def show(value):
    json.dump(value, sys.stdout, ensure_ascii=True, sort_keys=True, separators=(",", ":"))
    print()


def main():
    words = sys.argv[1:]
    v1 = "--v1" in words
    words = [w for w in words if w != "--v1"]
    match words:
        case [url, "seed"]:
            seed(Server(url, v1))
        case [url, "dump"]:
            show(dump(Server(url, v1)))
        case [url, "nearest"]:
            show(nearest(Server(url, v1)))
        case [url, "clear"]:
            clear(Server(url, v1))
        case [url, "hammer", seconds]:
            hammer(Server(url, v1), float(seconds))
        case ["-", "compare", a, b]:
            with open(a) as left, open(b) as right:
                if found := difference(json.load(left), json.load(right)):
                    sys.exit(f"the dumps differ: {found}")
        case _:
            sys.exit("usage: chroma.py [--v1] URL seed|dump|nearest|clear|hammer SECONDS, or chroma.py - compare A B")


main()
