CREATE TABLE sqlx_owner (id serial PRIMARY KEY, name text UNIQUE);
CREATE TABLE sqlx_pet (id serial PRIMARY KEY, name text, owner_id int);
