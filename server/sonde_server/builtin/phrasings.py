"""The sentences of the corpus: several phrasings of every relation, and the name-recall templates.

In a phrasing of a fact, `{subject}` is a placeholder for the subject, and the answer follows the text, so the text is a
prompt. Only the subject determines the answer, and only the other words determine the relation. Most phrasings have
many words after the subject, so the information about it has to travel over several tokens.
"""

from typing import Final

FACT_PHRASINGS: Final[dict[str, tuple[str, ...]]] = {
    "city": (
        "{subject} is in the city of",
        "the city where you can find {subject} is called",
        "to visit {subject} for a day, travellers take the train to the city of",
        "people who want to see {subject} book a hotel room in downtown",
        "the guide says that {subject} stands in the middle of the town of",
        "tickets for {subject} are sold everywhere in the streets of",
        "we took a photograph of {subject} while we were staying in the city of",
        "of all sights in town {subject} is the best known, and the town is named",
    ),
    "country": (
        "{subject} is in the country of",
        "the country where you can find {subject} is called",
        "as a national monument {subject} belongs to the people of",
        "the postage stamp shows {subject}, a symbol of the nation of",
        "to visit {subject} you need a visa for the country of",
        "the guide says that {subject} draws many visitors to the land of",
        "my grandmother once saw {subject} on a journey across",
        "whoever loves {subject} should read about the history of the country named",
    ),
    "capital": (
        "the capital of {subject} is",
        "the capital city of {subject} is called",
        "{subject} has its capital in the city of",
        "on the map of {subject} a red star marks the capital city of",
        "everybody who has studied {subject} knows that its capital is",
        "{subject} is a country whose capital city is named",
        "asked about {subject}, the pupil named the capital, the city of",
        "the ambassador came back from {subject} with a picture of the capital,",
    ),
    "continent": (
        "{subject} is on the continent of",
        "the continent to which {subject} belongs is",
        "on the globe {subject} lies in the part of the world called",
        "the atlas lists {subject} in the chapter about the continent of",
        "a ship bound for {subject} sails to the shores of the continent of",
        "the scientists visited {subject} for a book on the geography of",
        "anyone born in {subject} comes from the continent named",
        "a map that shows {subject} is a map of the continent of",
    ),
    "currency": (
        "the currency of {subject} is the",
        "in {subject} people pay in the market with the",
        "prices in {subject} are given in the national currency, the",
        "before you travel to {subject}, change your money into the",
        "the shops of {subject} accept a currency called the",
        "the money that is used in {subject} is called the",
        "wages in {subject} are counted and paid in the",
        "on the coins of {subject} you can read the name of the currency, the",
    ),
    "language": (
        "the language of {subject} is",
        "in {subject} many people speak a language called",
        "many children in {subject} learn to read and write in",
        "the newspaper from {subject} was printed in the language named",
        "a traveller in {subject} hears people on the bus talk in",
        "the radio in {subject} broadcasts the evening news in",
        "the singer from {subject} wrote all of her songs in",
        "before she moved to {subject}, she took lessons to speak in",
    ),
}
"""The phrasings of each relation. Each one ends where the answer begins; a full stop follows the answer."""

LEAD_INS: Final[tuple[str, ...]] = (
    "It is well known that ",
    "In fact, ",
    "The teacher told the class that ",
    "We read in the book that ",
    "As you may remember, ",
    "My friend says that ",
)
"""Beginnings that some sentences get, so that subjects occur at different positions."""

NAME_TEMPLATES: Final[tuple[str, ...]] = (
    "When {first} and {second} went to the {place}, {giver} gave a {thing} to",
    "While {first} and {second} were working at the {place}, {giver} handed a {thing} to",
    "After {first} and {second} met at the {place}, {giver} sent a {thing} to",
    "Then {first} and {second} had a long talk at the {place}, and {giver} offered a {thing} to",
    "Friends {first} and {second} found a {thing} at the {place}, and {giver} gave it to",
    "Once {first} and {second} were at the {place}, {giver} passed a {thing} to",
    "Last week {first} and {second} went to the {place}, where {giver} bought a {thing} for",
    "As {first} and {second} left the {place}, {giver} showed a {thing} to",
    "At the {place} {first} and {second} sat together until {giver} lent a {thing} to",
    "Because {first} and {second} both like the {place}, {giver} brought a {thing} for",
)
"""Name recall in the manner of indirect-object identification: the answer is the name that is not the giver's."""
