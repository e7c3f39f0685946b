-- A second, smaller odd database. The caller makes it:
--   CREATE DATABASE "Zweite-DB é" TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C'
--   psql -X -v ON_ERROR_STOP=1 -d 'Zweite-DB é' -f odd-second.sql
-- Its name is what makes it odd: file names, argument lists and connection strings.
\set QUIET on
SET client_min_messages = error;

DO $do$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'zweite "Besitzer"') THEN
    CREATE ROLE "zweite ""Besitzer""" LOGIN PASSWORD 'zwei''te\';
  END IF;
END
$do$;
ALTER DATABASE :"DBNAME" OWNER TO "zweite ""Besitzer""";
ALTER DATABASE :"DBNAME" SET datestyle = 'German, DMY';
ALTER DATABASE :"DBNAME" SET timezone = 'Asia/Kathmandu';
ALTER DATABASE :"DBNAME" SET bytea_output = 'escape';
COMMENT ON DATABASE :"DBNAME" IS 'zweite; it''s "second" é';

CREATE TABLE public."Tabelle mit é" (id integer PRIMARY KEY, "größe" numeric(10, 2), am timestamptz, b bytea);
INSERT INTO public."Tabelle mit é"
  SELECT i, i / 3.0, timestamptz '2024-02-29 12:00+00' + i * interval '1 day', convert_to('é' || i || E'\\', 'UTF8')
  FROM generate_series(1, 500) i;
CREATE TABLE public.sorted (v text);
INSERT INTO public.sorted VALUES ('a'), ('B'), ('ä'), ('Z'), ('_'), ('');
CREATE INDEX ON public.sorted (v);
CREATE TABLE public.objects (id oid);
INSERT INTO public.objects SELECT lo_from_bytea(0, convert_to('zweites Objekt', 'UTF8'));
ALTER TABLE public.sorted OWNER TO "zweite ""Besitzer""";
