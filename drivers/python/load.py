"""Load that runs while a migration changes its table."""

import threading


def run(work, migrate, threads=4, rounds=40):
    """Calls work(thread, round) in threads while migrate() runs in this one.

    Returns what went wrong, by text, without duplicates.
    """
    errors = set()

    def loop(thread):
        for n in range(rounds):
            try:
                work(thread, n)
            except Exception as e:  # whatever an application would see
                errors.add(f"{type(e).__name__}: {e}".splitlines()[0])

    running = [threading.Thread(target=loop, args=(t,)) for t in range(threads)]
    for t in running:
        t.start()
    migrate()
    for t in running:
        t.join()
    return sorted(errors)
