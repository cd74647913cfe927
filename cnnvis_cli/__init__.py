"""See what each unit of a trained convnet has learned.

A *dataset* flows through a *network* into a *store*; a *figure* is drawn from the store.
The *ascent* is the same flow without a dataset.

Floors, from the top; imports point down only::

    cli       one module a command: options -> stage -> report
    stages    one paragraph a command: the only place where the rooms meet
    plan      TOML and flags -> one frozen value
    dataset · network · ascent · store · figure        five rooms, no doors between them
    nouns · registry · report · errors
"""

__version__ = "0.1.0"
