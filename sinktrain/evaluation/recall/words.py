"""Plain words that name lines, where their numbers would be too hard for a small model to tell apart."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import TypeVar

Item = TypeVar("Item")

_LIST = """
    apple anchor arrow autumn bacon badge bamboo banner barrel basket battery beach beard bell bench berry bicycle
    bird blanket boat bone book bottle bowl branch brass bread brick bridge brush bucket bus butter button cabin
    cable camel camera candle canoe canvas carpet carrot castle cattle cave chain chair chalk cheese cherry chimney
    circus clay clock cloud clover coal coast coffee coin collar comet copper coral cotton couch cradle crane cream
    crown crystal cup curtain daisy desert desk diamond dinner dolphin donkey door dragon drum duck eagle engine
    engineer fabric falcon farm feather fence fiddle field finger flag flame flour flute forest fossil fountain fox
    frame garden garlic ghost giant ginger glass glove goat grape grass guitar hammer harbor harp hazel helmet honey
    horn horse hotel insect iron island ivory jacket jar jewel jungle kettle kitchen kite knife ladder lake lamp
    leather lemon lens lever linen lion lizard magnet maple marble market meadow melon mirror monkey moon motor
    mountain mouse museum needle nest novel oak ocean olive onion orange orchid oven owl oyster paint palace panda
    paper parrot peach pearl pencil pepper piano pigeon pillow pine pirate planet plum pocket potato prince pumpkin
    puzzle rabbit radio rail rain raven ribbon rice river robin rocket rose saddle sailor salmon salt sand shadow
    sheep shell silver spoon spider
"""
WORDS = _LIST.split()


def names(count: int, draw: random.Random) -> list[str]:
    """`count` names, no two alike: single words, or pairs of words when there are not enough of these.

    More of them begin with the same ones, as long as there are enough words for both.
    """
    if count <= len(WORDS):
        return _shuffled(WORDS, draw)[:count]
    pairs = _shuffled(range(len(WORDS) ** 2), draw)[:count]  # no stream has more lines
    return [f"{WORDS[pair // len(WORDS)]} {WORDS[pair % len(WORDS)]}" for pair in pairs]


def _shuffled(items: Iterable[Item], draw: random.Random) -> list[Item]:
    found = list(items)
    draw.shuffle(found)
    return found
