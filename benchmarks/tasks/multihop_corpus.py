"""The corpus of `multihop`: an encyclopaedia of a made-up valley, with questions across its pages.

Everything is drawn from `WORLD_SEED`: towns, people, companies, products, bridges, a page on each,
and every question with its answer and the pages that lead to it. Nothing of it is true, so no LM
can know it. What makes it hard, as in real collections: surnames and product names recur, pages
mention things that the question does not need, and product pages go on using the name that a
company had before it was renamed. The answer is always the present name.
"""

import functools
import itertools
import random
from dataclasses import dataclass

WORLD_SEED = 6
TOWNS = (
    *("Ostery", "Brackwell", "Tilmouth", "Harn", "Selcross", "Dunmere", "Fennwick", "Wexcombe"),
    *("Aldmoor", "Pennick", "Rathe", "Colvend", "Marsk", "Iverley", "Stobham", "Quenby"),
)
RIVERS = ("Arle", "Tarn", "Wend", "Isk", "Lode", "Mayre")
COUNTIES = ("Norwick", "Easthold", "Saltmarch", "Carrow", "Highmoor")
GIVEN = (
    *("Ida", "Tom", "Ruth", "Edwin", "Clara", "Hugo", "Nell", "Oscar", "Vera", "Lionel"),
    *("Agnes", "Percy", "Maud", "Silas", "Edith", "Walter", "Hilda", "Cecil", "Olive", "Jasper"),
)
SURNAMES = (
    "Morrow",
    "Fell",
    "Aske",
    "Thorne",
    "Pike",
    "Lister",
    "Quill",
    "Ramsden",
    "Voss",
    "Hale",
)
COMPANY_FIRST = (
    *("Vale", "Northern", "Crown", "Beacon", "Pioneer", "Lantern", "Granite", "Harbour", "Summit"),
    *("Meridian", "Anchor", "Falcon", "Copper", "Union", "Castle", "Orchard", "Silver", "Atlas"),
)
COMPANY_LAST = ("Works", "Lighting", "Instruments", "Mills", "Wares", "Engineering")
ANIMALS = ("Heron", "Otter", "Badger", "Kestrel", "Marten", "Plover", "Stoat", "Curlew")
THINGS = ("lamp", "kettle", "clock", "radio", "loom", "barometer")
N_PEOPLE, N_COMPANIES, N_PRODUCTS, N_BRIDGES, N_PAIRS = 40, 18, 40, 14, 30
FILLERS_ON_PEOPLE = (
    "The {town} Gazette printed two letters by the same hand.",
    "A street in {town} bears the same name, after somebody else.",
    "{person} was a cousin and lived in {town}.",
    "In later years there were long visits to {town}.",
    "{person} wrote a short book about those years.",
)
FILLERS = (
    "A model of it can be seen in the museum of {town}.",
    "The {town} Gazette wrote about it more than once.",
    "A street in {town} recalls {person}, who had no part in it.",
    "{person} praised it in a letter that has survived.",
    "It is sometimes confused with the {product}.",
    "A painting by {person} of {town} shows it.",
)


@dataclass(frozen=True)
class Page:
    title: str
    text: str


@dataclass(frozen=True)
class Question:
    """A question, the accepted answers (the first is the label), and the titles that lead there."""

    kind: str
    text: str
    accepted: tuple[str, ...]
    pages: tuple[str, ...]


@dataclass(frozen=True)
class Corpus:
    pages: tuple[Page, ...]
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Town:
    name: str
    river: str
    county: str


@dataclass(frozen=True)
class Person:
    name: str
    born: int
    birthplace: Town


@dataclass(frozen=True)
class Company:
    name: str
    former_name: str
    founder: Person
    founded: int
    seat: Town

    @property
    def known_as(self) -> str:
        """The name that other pages use."""
        return self.former_name or self.name

    @property
    def pages(self) -> tuple[str, ...]:
        """The titles between another page and the company's own, and that one."""
        return (self.former_name, self.name) if self.former_name else (self.name,)


@dataclass(frozen=True)
class Product:
    name: str
    company: Company
    designer: Person
    year: int


@dataclass(frozen=True)
class Bridge:
    name: str
    town: Town
    architect: Person
    year: int


@dataclass(frozen=True)
class World:
    towns: tuple[Town, ...]
    people: tuple[Person, ...]
    companies: tuple[Company, ...]
    products: tuple[Product, ...]
    bridges: tuple[Bridge, ...]


@functools.cache
def corpus() -> Corpus:
    """All pages and all questions; the same in every process."""
    world = _world(random.Random(f"multihop/{WORLD_SEED}"))
    return Corpus(pages=_pages(world), questions=_questions(world))


def _world(draw: random.Random) -> World:
    towns = tuple(Town(name, draw.choice(RIVERS), draw.choice(COUNTIES)) for name in TOWNS)
    names = draw.sample([f"{given} {last}" for given in GIVEN for last in SURNAMES], N_PEOPLE)
    people = tuple(Person(name, draw.randint(1890, 1930), draw.choice(towns)) for name in names)
    makers, others = people[:N_COMPANIES], people[N_COMPANIES:]
    companies = _companies(draw, makers, towns)
    products = tuple(
        _product(draw, name, draw.choice(companies), draw.choice(others))
        for name in draw.sample([f"{a} {t}" for a in ANIMALS for t in THINGS], N_PRODUCTS)
    )
    bridges = tuple(
        Bridge(f"{last} Bridge", town, architect, architect.born + draw.randint(30, 55))
        for last, town, architect in zip(
            [*SURNAMES, *ANIMALS][:N_BRIDGES],
            draw.sample(towns, N_BRIDGES),
            draw.sample(others, N_BRIDGES),
            strict=True,
        )
    )
    return World(towns, people, companies, products, bridges)


def _companies(
    draw: random.Random, founders: tuple[Person, ...], towns: tuple[Town, ...]
) -> tuple[Company, ...]:
    """One for each founder; every other one was renamed."""
    possible = [f"{first} {last}" for first in COMPANY_FIRST for last in COMPANY_LAST]
    names = draw.sample(possible, 2 * len(founders))
    return tuple(
        Company(
            name=names[2 * index],
            former_name=names[2 * index + 1] if index % 2 else "",
            founder=founder,
            founded=founder.born + draw.randint(22, 40),
            seat=draw.choice(towns),
        )
        for index, founder in enumerate(founders)
    )


def _product(draw: random.Random, name: str, company: Company, designer: Person) -> Product:
    first_year = max(company.founded, designer.born + 25)
    return Product(name, company, designer, first_year + draw.randint(0, 15))


# ------------------------------------------------------------------------------------ the pages


def _pages(world: World) -> tuple[Page, ...]:
    draw = random.Random(f"multihop pages/{WORLD_SEED}")
    on_people = [_person_page(person, world) for person in world.people]
    on_things = [
        *(_town_page(town) for town in world.towns),
        *(page for company in world.companies for page in _company_pages(company)),
        *(_product_page(product) for product in world.products),
        *(_bridge_page(bridge) for bridge in world.bridges),
    ]
    return (
        *(_with_filler(page, FILLERS_ON_PEOPLE, draw, world) for page in on_people),
        *(_with_filler(page, FILLERS, draw, world) for page in on_things),
    )


def _with_filler(page: Page, templates: tuple[str, ...], draw: random.Random, world: World) -> Page:
    """The page with two more sentences, about what no question asks for."""
    sentences = [
        template.format(
            town=draw.choice(world.towns).name,
            person=draw.choice(world.people).name,
            product=draw.choice(world.products).name,
        )
        for template in draw.sample(templates, 2)
    ]
    return Page(page.title, " ".join((page.text, *sentences)))


def _town_page(town: Town) -> Page:
    text = f"{town.name} is a town in the county of {town.county}, on the river {town.river}."
    return Page(town.name, text)


def _person_page(person: Person, world: World) -> Page:
    done = [f"founded {one.known_as}" for one in world.companies if one.founder is person]
    done += [f"built the {one.name}" for one in world.bridges if one.architect is person]
    done += [f"designed the {one.name}" for one in world.products if one.designer is person]
    text = f"{person.name} was born in {person.birthplace.name} in {person.born}"
    return Page(person.name, f"{text}, and {' and '.join(done)}." if done else f"{text}.")


def _company_pages(company: Company) -> list[Page]:
    """Its page, and one for its former name."""
    name, former_name = company.name, company.former_name
    text = (
        f"{name} is a company with its seat in {company.seat.name}. "
        f"{company.founder.name} founded it in {company.founded}."
    )
    if not former_name:
        return [Page(name, text)]
    return [
        Page(name, f"{text} It had another name until 1991."),
        Page(former_name, f"{former_name} was the name of {name} until 1991."),
    ]


def _product_page(product: Product) -> Page:
    company = product.company.known_as
    return Page(
        product.name,
        f"The {product.name} was brought out by {company} in {product.year}. "
        f"{product.designer.name} designed it.",
    )


def _bridge_page(bridge: Bridge) -> Page:
    return Page(
        bridge.name,
        f"The {bridge.name} in {bridge.town.name} was opened in {bridge.year}. "
        f"Its architect was {bridge.architect.name}.",
    )


# -------------------------------------------------------------------------------- the questions


def _questions(world: World) -> tuple[Question, ...]:
    draw = random.Random(f"multihop questions/{WORLD_SEED}")
    questions = itertools.chain(
        *(_about_product(product) for product in world.products),
        *(_about_company(company) for company in world.companies),
        *(_about_bridge(bridge) for bridge in world.bridges),
        _comparisons(draw, world.products),
    )
    return tuple(questions)


def _about_product(product: Product) -> list[Question]:
    name, company, designer = product.name, product.company, product.designer
    founder = company.founder
    questions = [
        Question(
            "founder",
            f"Who founded the company that makes the {name}?",
            (founder.name,),
            (name, *company.pages),
        ),
        Question(
            "founder's birthplace",
            f"In which town was the founder of the maker of the {name} born?",
            (founder.birthplace.name,),
            (name, *company.pages, founder.name),
        ),
        Question(
            "designer's year",
            f"In which year was the designer of the {name} born?",
            (str(designer.born), f"in {designer.born}"),
            (name, designer.name),
        ),
    ]
    if company.former_name:
        questions.append(
            Question(
                "maker",
                f"Which company makes the {name}?",
                (company.name,),
                (name, company.former_name),
            )
        )
    return questions


def _about_company(company: Company) -> list[Question]:
    seat, founder = company.seat, company.founder
    county = seat.county
    return [
        Question(
            "county",
            f"In which county is the seat of the company that {founder.name} founded?",
            (county, f"county of {county}", f"{county} county"),
            (founder.name, *company.pages, seat.name),
        )
    ]


def _about_bridge(bridge: Bridge) -> list[Question]:
    birthplace = bridge.architect.birthplace
    return [
        Question(
            "river",
            f"On which river is the birthplace of the architect of the {bridge.name}?",
            (birthplace.river, f"river {birthplace.river}"),
            (bridge.name, bridge.architect.name, birthplace.name),
        )
    ]


def _comparisons(draw: random.Random, products: tuple[Product, ...]) -> list[Question]:
    pairs = [
        (one, other)
        for one, other in itertools.combinations(products, 2)
        if one.company.founded != other.company.founded
    ]
    questions = []
    for one, other in draw.sample(pairs, N_PAIRS):
        older = min(one.company, other.company, key=lambda company: company.founded)
        questions.append(
            Question(
                "older company",
                f"Which company is older, the maker of the {one.name} or that of the {other.name}?",
                (older.name,),
                (one.name, *one.company.pages, other.name, *other.company.pages),
            )
        )
    return questions
