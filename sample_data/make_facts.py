"""Writes facts.parquet: sentences about buildings and mountains, with what a reader would extract from each."""
# ruff: noqa: INP001, E501  (a script; a fact is a line)

from pathlib import Path

import polars as pl

# sentence, place, year, height in metres; None where the sentence does not say it
FACTS: list[tuple[str, str | None, int | None, float | None]] = [
    ("The Eiffel Tower was finished in 1889 and is 330 metres tall.", "Eiffel Tower", 1889, 330),
    ("When it opened in 1931, the Empire State Building was the tallest in the world.", "Empire State Building", 1931, None),
    ("At 828 m, the Burj Khalifa has been the tallest building since 2010.", "Burj Khalifa", 2010, 828),
    ("Mont Blanc is 4,806 metres high.", "Mont Blanc", None, 4806),
    ("Mont Blanc was first climbed in 1786.", "Mont Blanc", 1786, None),
    ("Edmund Hillary and Tenzing Norgay reached the top of Mount Everest in 1953.", "Mount Everest", 1953, None),
    ("Mount Everest rises to 8,848.86 metres.", "Mount Everest", None, 8848.86),
    ("K2, 8,611 m, was first climbed in 1954.", "K2", 1954, 8611),
    ("Building of Cologne Cathedral began in 1248.", "Cologne Cathedral", 1248, None),
    ("The spires of Cologne Cathedral are 157 metres high.", "Cologne Cathedral", None, 157),
    ("The main spire of Ulm Minster is 161.5 m tall.", "Ulm Minster", None, 161.5),
    ("Sydney Opera House was opened by the Queen in 1973.", "Sydney Opera House", 1973, None),
    ("The Golden Gate Bridge opened in 1937; its towers are 227 metres high.", "Golden Gate Bridge", 1937, 227),
    ("Brooklyn Bridge has been open since 1883.", "Brooklyn Bridge", 1883, None),
    ("Tower Bridge in London was completed in 1894.", "Tower Bridge", 1894, None),
    ("The Statue of Liberty was dedicated in 1886.", "Statue of Liberty", 1886, None),
    ("From the ground to the torch, the Statue of Liberty measures 93 metres.", "Statue of Liberty", None, 93),
    ("Kilimanjaro, 5,895 m, is the highest mountain of Africa.", "Kilimanjaro", None, 5895),
    ("Hans Meyer stood on Kilimanjaro in 1889.", "Kilimanjaro", 1889, None),
    ("Aconcagua is 6,961 metres high and was first climbed in 1897.", "Aconcagua", 1897, 6961),
    ("The Matterhorn was climbed for the first time in 1865.", "Matterhorn", 1865, None),
    ("At 4,478 metres, the Matterhorn is not even among the five highest Alps.", "Matterhorn", None, 4478),
    ("Denali is North America's highest mountain: 6,190 m.", "Denali", None, 6190),
    ("Mount Fuji last erupted in 1707.", "Mount Fuji", 1707, None),
    ("Mount Fuji is 3,776 metres high.", "Mount Fuji", None, 3776),
    ("Vesuvius, 1,281 m today, last erupted in 1944.", "Vesuvius", 1944, 1281),
    ("Etna is among the most active volcanoes on earth.", "Etna", None, None),
    ("Tokyo Skytree, opened in 2012, is 634 metres tall.", "Tokyo Skytree", 2012, 634),
    ("Tokyo Tower was completed in 1958 and stands 333 m high.", "Tokyo Tower", 1958, 333),
    ("The CN Tower in Toronto is 553.3 metres high.", "CN Tower", None, 553.3),
    ("Toronto's CN Tower opened in 1976.", "CN Tower", 1976, None),
    ("Berlin's television tower, the Fernsehturm, was inaugurated in 1969.", "Fernsehturm", 1969, None),
    ("With 368 m the Fernsehturm is Germany's tallest structure.", "Fernsehturm", None, 368),
    ("The Shard in London was inaugurated in 2012; it is 310 metres tall.", "The Shard", 2012, 310),
    ("Taipei 101 opened in 2004 and measures 508 m.", "Taipei 101", 2004, 508),
    ("The Petronas Towers were finished in 1998.", "Petronas Towers", 1998, None),
    ("Each of the Petronas Towers is 452 metres tall.", "Petronas Towers", None, 452),
    ("Shanghai Tower, completed in 2015, is 632 metres tall.", "Shanghai Tower", 2015, 632),
    ("The Leaning Tower of Pisa was begun in 1173.", "Leaning Tower of Pisa", 1173, None),
    ("Pisa's leaning tower was closed in 1990 because it leaned too much.", "Leaning Tower of Pisa", 1990, None),
    ("The Colosseum could hold tens of thousands of spectators.", "Colosseum", None, None),
    ("Machu Picchu became known to the wide world in 1911.", "Machu Picchu", 1911, None),
    ("Machu Picchu lies 2,430 metres above the sea.", "Machu Picchu", None, 2430),
    ("The Atomium was built for the fair of 1958 and is 102 m high.", "Atomium", 1958, 102),
    ("Neuschwanstein was opened to visitors in 1886, weeks after the king's death.", "Neuschwanstein", 1886, None),
    ("The Millau Viaduct opened in 2004.", "Millau Viaduct", 2004, None),
    ("The highest mast of the Millau Viaduct reaches 343 metres.", "Millau Viaduct", None, 343),
    ("The Gateway Arch in St. Louis, completed in 1965, is as high as it is wide: 192 m.", "Gateway Arch", 1965, 192),
    ("The Washington Monument was completed in 1884 and is 169 metres tall.", "Washington Monument", 1884, 169),
    ("Big Ben first rang in 1859.", "Big Ben", 1859, None),
    ("The tower that houses Big Ben is 96 metres tall.", "Big Ben", None, 96),
    ("The Great Pyramid of Giza was the tallest building for thousands of years.", "Great Pyramid of Giza", None, None),
    ("Originally 146.6 m, the Great Pyramid has lost its tip.", "Great Pyramid of Giza", None, 146.6),
    ("Elbrus, 5,642 metres, is the highest mountain of the Caucasus.", "Elbrus", None, 5642),
    ("Annapurna was the first of the eight-thousanders to be climbed, in 1950.", "Annapurna", 1950, None),
    ("Nanga Parbat (8,126 m) was climbed alone by Hermann Buhl in 1953.", "Nanga Parbat", 1953, 8126),
    ("Ben Nevis is the highest mountain of the British Isles at 1,345 metres.", "Ben Nevis", None, 1345),
    ("The Sagrada Família has been under construction since 1882.", "Sagrada Família", 1882, None),
    ("Hagia Sophia was completed in the year 537.", "Hagia Sophia", 537, None),
    ("It was raining, and nobody saw the mountain.", None, None, None),
]  # fmt: skip


def main() -> None:
    """Write the file beside this script."""
    columns = {"sentence": pl.String, "place": pl.String, "year": pl.Int64, "height_m": pl.Float64}
    facts = pl.DataFrame(FACTS, schema=columns, orient="row", strict=False)
    facts.insert_column(0, pl.int_range(1, len(FACTS) + 1, eager=True).alias("id"))
    facts.write_parquet(Path(__file__).with_name("facts.parquet"))


if __name__ == "__main__":
    main()
