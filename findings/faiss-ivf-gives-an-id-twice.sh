#!/usr/bin/env bash
# faiss-cpu 1.15.1: `IndexIVFFlat.remove_ids` leaves the other vectors their ids (a flat index moves those behind up), but
# `add` counts on from the number of vectors that are left. So after a removal a new vector is given an id that
# another one has: a search returns the same id twice, for two passages, and a removal by it takes both.
# `add_with_ids` with numbers of one's own is right.
# Seen: ids 0-4, 1 removed, one added: it is 4 too; removing 4 leaves 3 of 5. Fails when that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check "faiss-cpu==1.15.1" numpy
"$work/env/bin/python" - <<'PY'
import faiss
import numpy

vectors = numpy.random.default_rng(0).normal(size=(500, 16)).astype(numpy.float32)


def nearest(index, vector):
    return int(index.search(vector[None], 1)[1][0, 0])


index = faiss.IndexIVFFlat(faiss.IndexFlatL2(16), 16, 4)
index.train(vectors)
index.nprobe = 4
index.add(vectors[:5])
index.remove_ids(numpy.array([1]))
kept = [nearest(index, vectors[n]) for n in (0, 2, 3, 4)]
index.add(vectors[5:6])
both = nearest(index, vectors[4]), nearest(index, vectors[5])
left = index.ntotal - index.remove_ids(numpy.array([4]))

flat = faiss.IndexFlatL2(16)
flat.add(vectors[:5])
flat.remove_ids(numpy.array([1]))
moved = [nearest(flat, vectors[n]) for n in (0, 2, 3, 4)]
print(f"faiss {faiss.__version__}: 1 removed, the others are {kept} (flat: {moved}); an old and the new one are {both}; "
      f"4 removed leaves {left}")
assert kept == [0, 2, 3, 4] and moved == [0, 1, 2, 3]
assert both == (4, 4) and left == 3, "a new vector gets an id of its own now"
PY
