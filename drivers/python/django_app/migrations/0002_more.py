from django.db import migrations, models


def fill(apps, _):
    apps.get_model("django_app", "Author").objects.create(name="made by a migration")


class Migration(migrations.Migration):
    dependencies = [("django_app", "0001_initial")]
    operations = [
        migrations.AddField("Author", "born", models.DateField(null=True)),
        migrations.AddField("Book", "extra", models.JSONField(default=dict)),
        migrations.RunPython(fill, migrations.RunPython.noop),
    ]
