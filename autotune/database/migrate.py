"""Alembic, which only a database that is new or old needs: nothing on the path of a look-up imports this."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Bring the schema up to a revision, inside the transaction that the connection is in."""
    command.upgrade(_config(connection), revision)


def downgrade(connection: Connection, revision: str) -> None:
    """Bring the schema back to an earlier revision (``base``: none), inside the connection's transaction."""
    command.downgrade(_config(connection), revision)
