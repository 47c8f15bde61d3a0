from tests.store.postgres import database, postgres  # noqa: F401
