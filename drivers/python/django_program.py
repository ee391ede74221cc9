"""Django: its migrations, while the first ones are in use, and its ORM."""

import os
import threading

import django
from django.conf import settings

e = os.environ
settings.configure(
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": e["PGDATABASE"],
            "USER": e["PGUSER"],
            "PASSWORD": e["PGPASSWORD"],
            "HOST": e["PGHOST"],
            "PORT": e["PGPORT"],
            "CONN_MAX_AGE": None,
            "OPTIONS": {"server_side_binding": True},
        }
    },
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "django_app"],
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    TIME_ZONE="Europe/Berlin",
    USE_TZ=True,
)
django.setup()

from django.contrib.auth.models import User  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.db import IntegrityError, connection, transaction  # noqa: E402
from django.db.models import Count, F  # noqa: E402

from django_app.models import Author, Book  # noqa: E402


def show(what, value):
    print(f"{what}: {value}", flush=True)


def clean():
    with connection.cursor() as c:
        c.execute("SELECT tablename FROM pg_tables WHERE tableowner = current_user AND (tablename LIKE 'django_%%' OR tablename LIKE 'auth_%%')")
        for (name,) in c.fetchall():
            c.execute(f'DROP TABLE "{name}" CASCADE')


clean()
call_command("migrate", "django_app", "0001", verbosity=1)

errors = set()


def load():
    for n in range(60):
        try:
            with transaction.atomic(), connection.cursor() as c:
                c.execute("INSERT INTO django_app_author (name) VALUES (%s) RETURNING id", [f"load {n}"])
                c.execute("DELETE FROM django_app_author WHERE id = %s", [c.fetchone()[0]])
        except Exception as e:
            errors.add(f"{type(e).__name__}: {e}")
    connection.close()


threads = [threading.Thread(target=load) for _ in range(3)]
for t in threads:
    t.start()
call_command("migrate", verbosity=1)
for t in threads:
    t.join()
show("load during the migration", sorted(errors))
show("made by it", list(Author.objects.values_list("name", "born")))

a = Author.objects.create(name="a", born="2000-01-02")
Book.objects.bulk_create(Book(title=f"book {i}", author=a, extra={"n": i}) for i in range(50))
show("json", Book.objects.filter(extra__n__gte=45).count())
show("annotate", list(Author.objects.annotate(n=Count("book")).order_by("id").values_list("name", "n")))
with transaction.atomic():
    Book.objects.create(title="kept", author=a)
    try:
        with transaction.atomic():
            Book.objects.create(title="kept", author=a)
    except IntegrityError as x:
        show("unique", x.__cause__.sqlstate)
show("kept", Book.objects.filter(title="kept").count())
show("iterator", sum(1 for _ in Book.objects.iterator(chunk_size=10)))
show("update", Book.objects.filter(title__startswith="book").update(title=F("title")))
with transaction.atomic():
    show("for update", Book.objects.select_for_update().get(title="kept").title)
show("get_or_create", Author.objects.get_or_create(name="b")[1])
u = User.objects.create_user("somebody", password=None)
show("user", User.objects.get(username="somebody").pk == u.pk)
with connection.cursor() as c:
    c.execute("SHOW timezone")
    show("time zone", c.fetchone())
call_command("migrate", "django_app", "zero", verbosity=1)
clean()
connection.close()
