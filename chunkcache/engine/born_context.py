"""Passages that every chunk may be born after, so that none is made as if it were the first.

Most of what a chunk's KV lacks in a prompt is not the text of its neighbours but the fact that it
had any: measured on real questions, being born after a few unrelated passages takes drift down
several times, at no cost in rows (docs/concepts/repair.md). What they say matters little; they were
written for this purpose, on things that nobody asks an assistant about. They are part of the key of
every record: to change a letter here is to start with an empty store.
"""

from __future__ import annotations

BORN_PASSAGES: tuple[tuple[str, str], ...] = (
    (
        "Tea",
        "Tea is made by pouring hot water over the cured leaves of a shrub that is native to the "
        "borders of China, India and Myanmar. The leaves of one plant give green, black and white "
        "tea; what differs is how long they are left to oxidise before they are dried. Traders "
        "carried tea along caravan roads for centuries before ships took over the trade, and many "
        "words for it descend either from cha, which went by land, or from te, which went by sea.",
    ),
    (
        "Tides",
        "The sea rises and falls about twice a day because the Moon, and to a lesser degree the "
        "Sun, pull the water on the near side of the Earth more strongly than the Earth itself. "
        "When Sun and Moon stand in one line the range is largest, which happens every two weeks "
        "at new and at full Moon. The shape of the coast matters as much: in a narrowing bay the "
        "water can climb by more than ten metres, while an enclosed sea hardly moves.",
    ),
    (
        "Bookbinding",
        "A book is bound by folding printed sheets into sections, sewing the sections through "
        "their folds, and fastening the block of pages to a cover. Early binders in Egypt sewed "
        "with a chain stitch; later workshops in Europe sewed over raised cords, which show as "
        "ridges on old spines. In the nineteenth century cloth replaced leather, and machines took "
        "over the sewing, so that books became cheap enough for schools and for public libraries.",
    ),
)
