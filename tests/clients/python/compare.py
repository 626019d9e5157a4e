"""Compares what the same script saw of two servers.

    compare.py PEER.json OURS.json DIFFERENCES.json

The last file lists the differences that are meant, by path: `{"scenario.field": "why"}`; a path may end
in `*`. A meant difference that is none any more is told, too, unless its reason begins with `sometimes:`.
"""

import json
import sys


def differences(peer, ours, path):
    if isinstance(peer, dict) and isinstance(ours, dict):
        for key in sorted(peer.keys() | ours.keys()):
            yield from differences(peer.get(key, MISSING), ours.get(key, MISSING), f"{path}.{key}" if path else key)
    elif isinstance(peer, list) and isinstance(ours, list) and len(peer) == len(ours):
        for at, (one, other) in enumerate(zip(peer, ours)):
            yield from differences(one, other, f"{path}.{at}")
    elif peer != ours:
        yield path, peer, ours


MISSING = "(nothing)"


def main(peer, ours, meant):
    peer, ours, meant = (json.load(open(name)) for name in (peer, ours, meant))
    used, surprises = set(), 0
    for path, one, other in differences(peer, ours, ""):
        fits = [key for key in meant if path == key or path.startswith(key + ".") or (key.endswith("*") and path.startswith(key[:-1]))]
        if fits:
            used.update(fits)
            continue
        surprises += 1
        print(f"{path}\n    peer {json.dumps(one)}\n    ours {json.dumps(other)}")
    for key in meant:
        if key not in used and not meant[key].startswith("sometimes:"):
            print(f"{key}: no difference any more ({meant[key]})")
    compared = len(peer.keys() & ours.keys())
    print(f"{compared} scenarios, {len(used)} differences that are meant, {surprises} that are not")
    sys.exit(1 if surprises else 0)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
