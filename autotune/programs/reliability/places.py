"""A database that a campaign has for itself: own_database."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import create_engine, make_url, text

from autotune.programs.reliability.campaign import Campaign


@contextmanager
def own_database(campaign: Campaign, kind: str, name: str) -> Iterator[str]:
    """Yield the URL of an empty database: on SQLite a file, on PostgreSQL a schema, which is dropped at the end."""
    if kind == "sqlite":
        yield f"sqlite:///{campaign.folder}/{name}.db"
        return
    url = make_url(campaign.databases[kind]).set(drivername="postgresql+psycopg")
    engine = create_engine(url, isolation_level="AUTOCOMMIT", hide_parameters=True)
    try:
        with engine.connect() as connection:
            connection.execute(text(f'CREATE SCHEMA "{name}"'))
        try:
            own = url.update_query_dict({"options": f"-csearch_path={name}"})
            yield own.render_as_string(hide_password=False)
        finally:
            with engine.connect() as connection:
                connection.execute(text(f'DROP SCHEMA "{name}" CASCADE'))
    finally:
        engine.dispose()
