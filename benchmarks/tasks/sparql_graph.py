"""The graph of `sparql`: a made-up railway network, as values and as an rdflib graph.

Drawn from `WORLD_SEED`. It has what makes real graphs hard to query: labels in two languages with
language tags, years as xsd:gYear, stations that are closed but still in the graph, populations in
thousands, and an order of stations that only `ex:nextStation` tells, in one direction.
`SCHEMA` is what a user is told of it; it does not say which stations a question means, nor the
unit of populations.

`run` answers queries of any LM: read-only, without network or files, and with bounded work.
"""

import functools
import itertools
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import rdflib
from rdflib.namespace import RDF, RDFS, XSD
from rdflib.plugins.sparql import prepareQuery

WORLD_SEED = 6
EX = rdflib.Namespace("http://example.org/rail#")
MAX_TRIPLES_READ, MAX_ROWS, MAX_CHARACTERS = 20_000, 500, 4_000
SCHEMA = """\
PREFIX ex: <http://example.org/rail#>, rdfs: <http://www.w3.org/2000/01/rdf-schema#>, xsd: ...
ex:Station  rdfs:label, ex:inTown (ex:Town), ex:onLine (ex:Line, one or more), ex:platforms,
            ex:stepFree, ex:opened, ex:closed, ex:nextStation (ex:Station)
ex:Line     rdfs:label, ex:operatedBy (ex:Operator), ex:opened
ex:Town     rdfs:label, ex:inCounty (ex:County), ex:population
ex:County   rdfs:label
ex:Operator rdfs:label"""

COUNTIES = (("Norwick", "Norouique"), ("Easthold", "Estholde"), ("Saltmarch", "Marche-au-Sel"))
OPERATORS = ("Valley Rail", "Coastal Railways", "Northern Link")
LINES = ("Coast", "Valley", "Moor", "Harbour", "Forest", "Castle", "Lake", "Border")
TOWNS = (
    *("Ostery", "Brackwell", "Tilmouth", "Harn", "Selcross", "Dunmere", "Fennwick", "Wexcombe"),
    *("Aldmoor", "Pennick", "Rathe", "Colvend", "Marsk", "Iverley", "Stobham", "Quenby"),
)
PLACES = ("Central", "Market", "Docks", "Park", "Mill Road", "North", "South", "Abbey")
N_STATIONS, SHARE_CLOSED = 72, 0.25


@dataclass(frozen=True)
class Town:
    name: str
    county: str
    population: int


@dataclass(frozen=True)
class Line:
    name: str
    operator: str
    opened: int


@dataclass(frozen=True)
class Station:
    name: str
    town: Town
    lines: tuple[Line, ...]
    platforms: int
    is_step_free: bool
    opened: int
    closed: int | None

    @property
    def is_open(self) -> bool:
        return self.closed is None


@dataclass(frozen=True)
class Network:
    towns: tuple[Town, ...]
    lines: tuple[Line, ...]
    stations: tuple[Station, ...]

    def along(self, line: Line) -> tuple[Station, ...]:
        """The stations of the line in their order, closed ones too."""
        return tuple(station for station in self.stations if line in station.lines)


@functools.cache
def network() -> Network:
    """The whole network; the same in every process."""
    draw = random.Random(f"sparql/{WORLD_SEED}")
    counties = [english for english, _ in COUNTIES]
    towns = tuple(Town(name, draw.choice(counties), 100 * draw.randint(21, 980)) for name in TOWNS)
    years = draw.sample(range(1851, 1930), len(LINES))
    lines = tuple(
        Line(f"{name} Line", draw.choice(OPERATORS), year)
        for name, year in zip(LINES, years, strict=True)
    )
    names = draw.sample([(town, place) for town in towns for place in PLACES], N_STATIONS)
    stations = tuple(_station(draw, town, place, lines) for town, place in names)
    return Network(towns, lines, stations)


def _station(draw: random.Random, town: Town, place: str, lines: tuple[Line, ...]) -> Station:
    own = draw.sample(lines, draw.choice((1, 1, 2, 2, 3)))
    own.sort(key=lambda line: line.name)
    opened = min(line.opened for line in own) + draw.randint(0, 30)
    return Station(
        name=f"{town.name} {place}",
        town=town,
        lines=tuple(own),
        platforms=draw.randint(1, 8),
        is_step_free=draw.random() < 0.5,
        opened=opened,
        closed=draw.randint(1960, 1995) if draw.random() < SHARE_CLOSED else None,
    )


# ------------------------------------------------------------------------------------ the graph


@functools.cache
def graph() -> rdflib.Graph:
    """The network as triples. Treat it as read-only: all students share it."""
    made = rdflib.Graph()
    world = network()
    for english, french in COUNTIES:
        _add_labelled(made, EX.County, english, french)
    for operator in OPERATORS:
        _add_labelled(made, EX.Operator, operator)
    for town in world.towns:
        node = _add_labelled(made, EX.Town, town.name)
        made.add((node, EX.inCounty, node_of(town.county)))
        thousands = Decimal(town.population) / 1000
        made.add((node, EX.population, rdflib.Literal(thousands, datatype=XSD.decimal)))
    for line in world.lines:
        french = f"Ligne {line.name.removesuffix(' Line')}"
        node = _add_labelled(made, EX.Line, line.name, french)
        made.add((node, EX.operatedBy, node_of(line.operator)))
        made.add((node, EX.opened, _year(line.opened)))
        for one, following in itertools.pairwise(world.along(line)):
            made.add((node_of(one.name), EX.nextStation, node_of(following.name)))
    for station in world.stations:
        _add_station(made, station)
    return made


def _add_station(made: rdflib.Graph, station: Station) -> None:
    node = _add_labelled(made, EX.Station, station.name, f"Gare de {station.name}")
    made.add((node, EX.inTown, node_of(station.town.name)))
    for line in station.lines:
        made.add((node, EX.onLine, node_of(line.name)))
    made.add((node, EX.platforms, rdflib.Literal(station.platforms)))
    made.add((node, EX.stepFree, rdflib.Literal(station.is_step_free)))
    made.add((node, EX.opened, _year(station.opened)))
    if station.closed is not None:
        made.add((node, EX.closed, _year(station.closed)))


def _add_labelled(
    made: rdflib.Graph, kind: rdflib.URIRef, english: str, french: str = ""
) -> rdflib.URIRef:
    node = node_of(english)
    made.add((node, RDF.type, kind))
    made.add((node, RDFS.label, rdflib.Literal(english, lang="en")))
    made.add((node, RDFS.label, rdflib.Literal(french or english, lang="fr")))
    return node


def node_of(label: str) -> rdflib.URIRef:
    """The resource with that English label."""
    return EX[label.replace(" ", "")]


def _year(year: int) -> rdflib.Literal:
    return rdflib.Literal(str(year), datatype=XSD.gYear)


# ----------------------------------------------------------------------------- running a query


class QueryError(ValueError):
    """A query that cannot be answered; the message is what the writer of the query is told."""


class _BoundedGraph(rdflib.Graph):
    """A view of the graph that gives up when a query reads too much, wherever it reads."""

    def __init__(self, base: rdflib.Graph) -> None:
        super().__init__(store=base.store, identifier=base.identifier)
        self._n_read = 0

    def triples(self, pattern: Any) -> Iterator[Any]:
        for triple in super().triples(pattern):
            self._n_read += 1
            if self._n_read > MAX_TRIPLES_READ:
                raise QueryError(
                    f"The query reads more than {MAX_TRIPLES_READ} triples: its patterns are not "
                    f"joined, or too general."
                )
            yield triple


_lock = threading.Lock()  # rdflib's parser is not made for threads

Rows = frozenset[tuple[str, ...]]


def run(query: str) -> Rows:
    """The rows that the query gives, as text: labels of resources in English, numbers in one form.

    Raises:
        QueryError: it does not parse, is no SELECT or ASK, asks for other graphs or services, reads
            or gives too much, or fails while it runs.
    """
    if len(query) > MAX_CHARACTERS:
        raise QueryError(f"The query has {len(query)} characters, more than {MAX_CHARACTERS}.")
    with _lock:
        try:
            return _rows(_prepared(query))
        except QueryError:
            raise
        except Exception as error:  # whatever rdflib raises is an answer to the query's writer
            raise QueryError(f"{type(error).__name__}: {str(error)[:300]}") from error


def _prepared(query: str) -> Any:
    namespaces = {"ex": EX, "rdf": RDF, "rdfs": RDFS, "xsd": XSD}
    prepared = prepareQuery(query, initNs=namespaces)
    kind = prepared.algebra.name
    if kind not in ("SelectQuery", "AskQuery"):
        raise QueryError(f"This is a {kind}: only SELECT and ASK are answered.")
    if prepared.algebra.datasetClause or "ServiceGraphPattern" in str(prepared.algebra):
        raise QueryError(f"FROM and SERVICE are refused in a {kind}: there is this one graph.")
    return prepared


def _rows(prepared: Any) -> Rows:
    result = _BoundedGraph(graph()).query(prepared)
    if result.type == "ASK":
        return frozenset({("true" if result.askAnswer else "false",)})
    found = list(itertools.islice(result, MAX_ROWS + 1))
    if len(found) > MAX_ROWS:
        raise QueryError(f"The query gives more than {MAX_ROWS} rows.")
    return frozenset(tuple(_text(value) for value in row) for row in found)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, rdflib.URIRef):
        english = [label for label in graph().objects(value, RDFS.label) if label.language == "en"]
        return str(english[0]) if english else str(value)
    if isinstance(value, rdflib.Literal) and isinstance(value.value, int | float | Decimal):
        return number_text(value.value)
    return str(value)


def number_text(value: float | Decimal) -> str:
    """`12.0` and `12` are `12`; true and false stay words."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return format(Decimal(str(value)).normalize(), "f")
