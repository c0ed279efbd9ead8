"""The one exception a user is meant to see."""


class RisError(Exception):
    """Something the user can mend: one line that says which file or record, what is wrong and what to do."""
