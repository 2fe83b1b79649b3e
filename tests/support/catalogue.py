"""What a database knows of its tables, to compare two of them."""

from sqlalchemy import Engine, text


def catalogue(engine: Engine, schema: str = "public") -> dict[str, str]:
    """Everything that the database knows of the tables in a schema, by name, with blanks made equal."""
    queries = _SQLITE if engine.dialect.name == "sqlite" else _POSTGRESQL
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text(f'SET LOCAL search_path TO "{schema}"'))  # names in it stand without it then
        rows = [row for query in queries for row in connection.execute(text(query))]
    found = {row[0]: _clauses(" ".join((row[1] or "").split()).replace(f" {schema}.", " ")) for row in rows}
    assert len(found) == len(rows)
    assert len(found) > 10
    return found


def _clauses(sql: str) -> str:
    """SQLite keeps a table's text as it was written: a column that was added later stands behind the constraints."""
    if not sql.startswith("CREATE TABLE"):
        return sql
    name, body = sql.split("(", 1)
    clauses, depth = [""], 0
    for character in body.strip().removesuffix(")"):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == "," and not depth:
            clauses.append("")
        else:
            clauses[-1] += character
    return f"{name}({'; '.join(sorted(clause.strip() for clause in clauses))})"


_SQLITE = ("SELECT type || ' ' || name, sql FROM sqlite_master",)

_POSTGRESQL = (
    "SELECT 'constraint ' || conname, conrelid::regclass || ' ' || pg_get_constraintdef(oid) FROM pg_constraint "
    "WHERE connamespace = current_schema()::regnamespace",
    "SELECT 'index ' || indexname, indexdef FROM pg_indexes WHERE schemaname = current_schema()",
    "SELECT 'trigger ' || tgname, pg_get_triggerdef(oid) || ' ' || tgenabled::text FROM pg_trigger "
    "WHERE NOT tgisinternal AND pg_table_is_visible(tgrelid)",
    "SELECT 'function ' || proname, prosrc FROM pg_proc WHERE pronamespace = current_schema()::regnamespace",
    "SELECT 'column ' || table_name || '.' || column_name, ordinal_position || ' ' || data_type || ' ' || is_nullable "
    "|| ' ' || coalesce(character_maximum_length, 0) || ' ' || coalesce(column_default, '-') "
    "FROM information_schema.columns WHERE table_schema = current_schema()",
)
