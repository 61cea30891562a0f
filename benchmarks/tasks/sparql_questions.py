"""The questions of `sparql`, each with its query and its answer.

The answer is computed from the network's values, not by the query, so that each checks the other.
Unless a question says otherwise, it means stations that are open, and populations in inhabitants.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tasks.sparql_graph import Line, Network, Station, Town, number_text

OPEN = "FILTER NOT EXISTS { ?s ex:closed ?year }"
MAX_ROWS_OF_ANSWER = 14


@dataclass(frozen=True)
class Question:
    """A question, a query that answers it, and its answer as one text for each row."""

    kind: str
    text: str
    query: str
    answer: tuple[str, ...]


def questions(world: Network) -> tuple[Question, ...]:
    """Every question that has an answer of a size that a person would read."""
    made = itertools.chain(
        *(_about_town(world, town) for town in world.towns),
        *(_about_line(world, line) for line in world.lines),
        *(_about_station(world, station) for station in world.stations if station.is_open),
        _about_pairs(world),
        _about_counties(world),
    )
    return tuple(one for one in made if 0 < len(one.answer) <= MAX_ROWS_OF_ANSWER)


def _names(stations: Iterable[Station]) -> tuple[str, ...]:
    return tuple(sorted(station.name for station in stations))


def _about_town(world: Network, town: Town) -> Iterator[Question]:
    there = [station for station in world.stations if station.town is town]
    in_town = f'?s ex:inTown ?t . ?t rdfs:label "{town.name}"@en .'
    yield Question(
        "stations of a town",
        f"Which stations are in {town.name}?",
        f"SELECT ?s WHERE {{ {in_town} {OPEN} }}",
        _names(station for station in there if station.is_open),
    )
    yield Question(
        "closed stations of a town",
        f"Which stations in {town.name} have been closed?",
        f"SELECT ?s WHERE {{ {in_town} ?s ex:closed ?year }}",
        _names(station for station in there if not station.is_open),
    )
    lines = {line.name for station in there if station.is_open for line in station.lines}
    yield Question(
        "lines of a town",
        f"Which lines serve {town.name}?",
        f"SELECT DISTINCT ?l WHERE {{ {in_town} ?s ex:onLine ?l {OPEN} }}",
        tuple(sorted(lines)),
    )
    yield Question(
        "population",
        f"How many inhabitants does {town.name} have?",
        "SELECT (?p * 1000 AS ?n) WHERE "
        f'{{ ?t a ex:Town ; rdfs:label "{town.name}"@en ; ex:population ?p }}',
        (str(town.population),),
    )


def _about_line(world: Network, line: Line) -> Iterator[Question]:
    stations = [station for station in world.along(line) if station.is_open]
    on_line = f'?s ex:onLine ?l . ?l rdfs:label "{line.name}"@en .'
    yield Question(
        "number of stations",
        f"How many stations does the {line.name} have?",
        f"SELECT (COUNT(DISTINCT ?s) AS ?n) WHERE {{ {on_line} {OPEN} }}",
        (str(len(stations)),),
    )
    yield Question(
        "step-free stations",
        f"Which stations of the {line.name} are step-free?",
        f"SELECT ?s WHERE {{ {on_line} ?s ex:stepFree true {OPEN} }}",
        _names(station for station in stations if station.is_step_free),
    )
    yield Question(
        "operator",
        f"Who operates the {line.name}?",
        f'SELECT ?o WHERE {{ ?l rdfs:label "{line.name}"@en ; ex:operatedBy ?o }}',
        (line.operator,),
    )
    yield Question(
        "counties of a line",
        f"Through which counties does the {line.name} run, by its stations?",
        f"SELECT DISTINCT ?c WHERE {{ {on_line} ?s ex:inTown/ex:inCounty ?c {OPEN} }}",
        tuple(sorted({station.town.county for station in stations})),
    )
    by_platforms = sorted(stations, key=lambda station: station.platforms, reverse=True)
    if by_platforms[0].platforms > by_platforms[1].platforms:
        yield Question(
            "most platforms",
            f"Which station of the {line.name} has the most platforms?",
            f"SELECT ?s WHERE {{ {on_line} ?s ex:platforms ?n {OPEN} }} ORDER BY DESC(?n) LIMIT 1",
            (by_platforms[0].name,),
        )


def _about_station(world: Network, station: Station) -> Iterator[Question]:
    this = f'?this rdfs:label "{station.name}"@en .'
    yield Question(
        "lines of a station",
        f"Which lines stop at {station.name}?",
        f"SELECT ?l WHERE {{ {this} ?this ex:onLine ?l }}",
        tuple(sorted(line.name for line in station.lines)),
    )
    following = {
        one
        for line in station.lines
        for here, one in itertools.pairwise(world.along(line))
        if here is station
    }
    if all(one.is_open for one in following):
        yield Question(
            "next station",
            f"Which stations come directly after {station.name}?",
            f"SELECT DISTINCT ?s WHERE {{ {this} ?this ex:nextStation ?s }}",
            _names(following),
        )


def _about_pairs(world: Network) -> Iterator[Question]:
    for one, other in itertools.combinations(world.lines, 2):
        yield Question(
            "interchange",
            f"Where can one change between the {one.name} and the {other.name}?",
            f'SELECT ?s WHERE {{ ?s ex:onLine ?a, ?b . ?a rdfs:label "{one.name}"@en . '
            f'?b rdfs:label "{other.name}"@en . {OPEN} }}',
            _names(
                station
                for station in world.stations
                if station.is_open and {one, other} <= set(station.lines)
            ),
        )


def _about_counties(world: Network) -> Iterator[Question]:
    for county in sorted({town.county for town in world.towns}):
        towns = [town for town in world.towns if town.county == county]
        in_county = f'?t ex:inCounty ?c . ?c rdfs:label "{county}"@en .'
        yield Question(
            "population of a county",
            f"How many people live in the towns of {county}, all together?",
            f"SELECT (SUM(?p) * 1000 AS ?n) WHERE {{ {in_county} ?t ex:population ?p }}",
            (number_text(sum(town.population for town in towns)),),
        )
        for limit in (10_000, 20_000, 40_000, 60_000, 80_000):
            yield Question(
                "large towns",
                f"Which towns in {county} have more than {limit:,} inhabitants?",
                f"SELECT ?t WHERE {{ {in_county} ?t ex:population ?p "
                f"FILTER(?p > {limit // 1000}) }}",
                tuple(sorted(town.name for town in towns if town.population > limit)),
            )
        counts = Counter(
            station.town.name
            for station in world.stations
            if station.is_open and station.town.county == county
        )
        for least in (3, 4):
            yield Question(
                "towns with several stations",
                f"Which towns in {county} have at least {least} stations?",
                f"SELECT ?t WHERE {{ {in_county} ?s ex:inTown ?t {OPEN} }} "
                f"GROUP BY ?t HAVING (COUNT(?s) >= {least})",
                tuple(sorted(name for name, n in counts.items() if n >= least)),
            )
