"""First names, places and things for the name-recall sentences.

Every place follows "the" and every thing follows "a", so each of them fits every sentence.
"""

from typing import Final

_FIRST_NAMES = """
    Aaron Adam Alan Albert Alice Amber Amy Andrew Angela Anna Anthony Arthur Barbara Ben Beth Bill Brian Bruce Carl
    Carol Charles Chris Clara Craig Daniel David Diana Donald Dorothy Edward Ellen Emily Emma Eric Felix Frank Fred
    Gary George Grace Greg Hannah Harry Helen Henry Howard Ian Irene Isaac Jack James Jane Jason Jennifer Jeremy
    Jessica Joan John Joseph Joshua Julia Karen Kate Keith Kelly Kevin Larry Laura Leo Linda Lisa Louis Lucy Luke
    Margaret Maria Mark Martin Mary Matthew Michael Michelle Nancy Nathan Nicholas Nina Oliver Oscar Patrick Paul
    Peter Philip Rachel Ralph Rebecca Richard Robert Roger Rose Ruth Ryan Sally Samuel Sarah Scott Simon Sophie
    Stephen Steven Susan Teresa Thomas Timothy Tom Victor Vincent Walter William
"""

_PLACES = """
    store school office garden market library museum station park restaurant hospital beach theatre house church bank
    hotel bakery cinema farm harbour kitchen bridge lake village castle zoo gym cafe airport
"""

_THINGS = """
    drink book ring flower ticket letter basket key cake coat camera pencil present kite necklace bone computer ball
    lamp map guitar blanket hat mirror picture clock bottle sandwich watch cup
"""

FIRST_NAMES: Final[tuple[str, ...]] = tuple(_FIRST_NAMES.split())
PLACES: Final[tuple[str, ...]] = tuple(_PLACES.split())
THINGS: Final[tuple[str, ...]] = tuple(_THINGS.split())
