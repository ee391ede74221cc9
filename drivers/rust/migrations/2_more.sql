ALTER TABLE sqlx_load ADD COLUMN more int DEFAULT 7;
ALTER TABLE sqlx_pet ADD COLUMN born date;
