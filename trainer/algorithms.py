"""Which algorithms there are: one line each. Those of other packages come as entry points.

A job record names its algorithm and nothing else: what is imported for it stands here, or in the
metadata of an installed package.
"""

import difflib
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from pydantic import BaseModel

from salon.errors import InvalidRequest, SalonError

GROUP = "salon.algorithms"
"""Entry points of this group name job classes of other packages: `climb = "hills:ClimbJob"`."""

# Text, so that nothing is imported before it is asked for.
_OWN = {
    "ddpo": "trainer.ddpo.config:DDPOJob",
    "rwr": "trainer.rwr.config:RWRJob",
}


class AlgorithmUnusable(SalonError):
    """A package offers it, and what it offers cannot be used."""


@cache
def _places() -> Mapping[str, set[str]]:
    """Where the job class of each is; of one that several packages offer, all of them."""
    places: dict[str, set[str]] = {name: {place} for name, place in _OWN.items()}
    for point in entry_points(group=GROUP):
        if point.name not in _OWN:
            places.setdefault(point.name, set()).add(point.value)
    return places


def names() -> list[str]:
    """Those of all algorithms, Salon's own first."""
    return [*_OWN, *sorted(_places().keys() - _OWN.keys())]


def job_class(name: str) -> type[BaseModel]:
    """The class of jobs whose `algorithm.name` this is; imports no torch.

    Raises:
        InvalidRequest: there is no algorithm of that name.
        AlgorithmUnusable: its package is there and cannot be imported, or there are several.
    """
    places = _places().get(name)
    if places is None:
        raise InvalidRequest(f"no algorithm {name!r}; {hint(name, names())}")
    if len(places) > 1:
        offered = " and ".join(sorted(places))
        raise AlgorithmUnusable(f"algorithm {name}: {offered} both offer it: remove one package")
    [place] = places
    found = resolve(place, f"algorithm {name}")
    if not (isinstance(found, type) and issubclass(found, BaseModel)):
        raise AlgorithmUnusable(f"algorithm {name}: {place} is no job class")
    return found


def resolve(place: str, what: str) -> Any:
    """The object at `module:name`, a text of Salon's own or of an installed package's metadata.

    Args:
        place: where it is.
        what: for people, whose it is.

    Raises:
        AlgorithmUnusable: it is not there.
    """
    module, _, attribute = place.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except (
        Exception,
        SystemExit,
    ) as error:  # whatever a package of somebody else raises while it is imported
        raise AlgorithmUnusable(
            f"{what}: {place} cannot be imported ({type(error).__name__}: {error}); reinstall or "
            "remove the package that offers it"
        ) from error


def hint(name: str, known: list[str]) -> str:
    """The way out for one who wrote `name`, which is none of those known."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
