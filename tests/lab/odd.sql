-- Odd data for PostgreSQL: all that a dump, a reader of dumps or a restore gets wrong.
--   psql -X -v ON_ERROR_STOP=1 -d tars_home -f odd.sql      (superuser, empty database)
-- Roles belong to the cluster and may exist already; everything else must not.
-- What could go wrong: wal_level below `logical` makes CREATE PUBLICATION warn. That is
-- expected here, and again when a dump is loaded.
\set QUIET on
SET client_min_messages = error;
SET standard_conforming_strings = on;
SET timezone = 'UTC';

-- ---------------------------------------------------------------- roles (cluster)
DO $do$
DECLARE r text;
BEGIN
  FOREACH r IN ARRAY ARRAY['app_group', 'app_reader', 'Rolle é "x"', 'odd owner', 'app_old'] LOOP
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = r) THEN
      EXECUTE format('CREATE ROLE %I', r);
    END IF;
  END LOOP;
END
$do$;
ALTER ROLE app_group NOLOGIN;
ALTER ROLE app_reader LOGIN PASSWORD 'rd''r$x\y"z' CONNECTION LIMIT 7 VALID UNTIL '2099-12-31 00:00:00+00';
ALTER ROLE "Rolle é ""x""" LOGIN CREATEDB PASSWORD 'ü; DROP ROLE x; --';
ALTER ROLE "odd owner" NOLOGIN NOINHERIT;
ALTER ROLE app_old LOGIN PASSWORD 'md5aabbccddeeff00112233445566778899' VALID UNTIL '2001-01-01';
GRANT app_group TO app_reader;
GRANT app_group TO "Rolle é ""x""" WITH ADMIN OPTION;
ALTER ROLE app_reader SET statement_timeout = '61s';
ALTER ROLE "Rolle é ""x""" SET search_path = "Odd ""Schema"".x é", public;
COMMENT ON ROLE app_group IS 'group; it''s not a login';

-- ---------------------------------------------------------------- settings of the database
ALTER DATABASE :"DBNAME" SET work_mem = '5MB';
ALTER DATABASE :"DBNAME" SET search_path = "$user", public, "Odd ""Schema"".x é";
ALTER DATABASE :"DBNAME" SET "tars.note" = 'it''s a "custom" \setting; é';
ALTER ROLE app_reader IN DATABASE :"DBNAME" SET lock_timeout = '3s';
ALTER ROLE "Rolle é ""x""" IN DATABASE :"DBNAME" SET search_path = '', "Odd ""Schema"".x é";
REVOKE CONNECT ON DATABASE :"DBNAME" FROM PUBLIC;
GRANT CONNECT, TEMPORARY ON DATABASE :"DBNAME" TO app_group;
GRANT CREATE ON DATABASE :"DBNAME" TO "Rolle é ""x""" WITH GRANT OPTION;
ALTER DATABASE :"DBNAME" CONNECTION LIMIT 77;
COMMENT ON DATABASE :"DBNAME" IS 'home''s "database"; second line follows
-- PostgreSQL database dump complete';

-- ---------------------------------------------------------------- schemas, types, extension
CREATE SCHEMA app AUTHORIZATION "odd owner";
CREATE SCHEMA "Odd ""Schema"".x é";
CREATE SCHEMA "$user";
COMMENT ON SCHEMA "Odd ""Schema"".x é" IS E'tab\there, back\\slash, ''quote'', "double", $$dollar$$';

CREATE EXTENSION hstore SCHEMA public;
CREATE TYPE public.mood AS ENUM ('sad', 'ok', 'it''s "fine"', 'glücklich', ',;\');
CREATE DOMAIN public.positive AS integer DEFAULT 1 CHECK (VALUE > 0);
CREATE DOMAIN app."e mail" AS text NOT NULL CHECK (VALUE ~ '^[^@\s;'']+@[^@]+$');
CREATE TYPE public.pair AS (k text, "v v" public.mood);
CREATE COLLATION public.odd_collation (provider = libc, locale = 'C');

-- ---------------------------------------------------------------- bytes and text
CREATE TABLE public.bytes (id integer PRIMARY KEY, b bytea);
INSERT INTO public.bytes
  SELECT 0, string_agg(set_byte('\x00'::bytea, 0, i), ''::bytea ORDER BY i) FROM generate_series(0, 255) i;
INSERT INTO public.bytes SELECT i + 1, set_byte('\x00'::bytea, 0, i) FROM generate_series(0, 255) i;
INSERT INTO public.bytes VALUES (1000, ''), (1001, NULL), (1002, decode(repeat('5c2e0a00', 200000), 'hex'));
ALTER TABLE public.bytes ALTER b SET STORAGE EXTERNAL;

CREATE TABLE public.texts (id integer PRIMARY KEY, note text, v text);
INSERT INTO public.texts VALUES
  (1, 'tab', E'a\tb'), (2, 'newline', E'a\nb\n'), (3, 'backslash', E'\\ \\\\ \\n \\t \\N'),
  (4, 'end of copy', E'\\.'), (5, 'end of copy in lines', E'x\n\\.\ny'), (6, 'header', 'COPY x FROM stdin;'),
  (7, 'header in lines', E'1\nCOPY public.fake (a) FROM stdin;\n2\n\\.\n-- PostgreSQL database dump complete\n'),
  (8, 'null mark', E'\\N'), (9, 'null', NULL), (10, 'empty', ''), (11, 'crlf', E'a\r\nb\rc'),
  (12, 'controls', E'\x01\x02\x08\x0b\x0c\x1b\x7f'), (13, 'separators', U&'\2028\2029\0085\FEFF\00A0'),
  (14, 'astral', U&'\+01F600 e\0301 \+10FFFD'), (15, 'meta', E'\\connect postgres\n\\! true\n\\unrestrict x\n\\i /x'),
  (16, 'dollar', '$$ $_$ $1 $body$'), (17, 'quotes', E'''"`\\''"'), (18, 'long line', repeat('lang ', 200000)),
  (19, 'comment', '-- x /* y */ ;'), (20, 'blank', '   ');

-- A name, and columns, that look like the header of a COPY block; and other names.
CREATE TABLE public."evil (a) FROM stdin;" ("b) FROM stdin;" text, "COPY ""x"" (" integer, "tab	name" text);
INSERT INTO public."evil (a) FROM stdin;" VALUES (E'COPY public.fake (a) FROM stdin;\n\\.', 1, 'x'), (E'\\.', 2, E'\t');
CREATE TABLE public."--not a comment" (a integer);
INSERT INTO public."--not a comment" VALUES (1), (2);
CREATE TABLE "Odd ""Schema"".x é"."Ta.ble ""q"" '1' ; $$ \ 表 é" (
  "Col ""a"".b" text, "sélect" text, "select" text, "a  b" integer, "\." text, "%I" text, "Ünï" text
);
INSERT INTO "Odd ""Schema"".x é"."Ta.ble ""q"" '1' ; $$ \ 表 é"
  SELECT 'v"' || i, E'é\t', '表', i, E'\\.', '%s', '' FROM generate_series(1, 17) i;
COMMENT ON TABLE "Odd ""Schema"".x é"."Ta.ble ""q"" '1' ; $$ \ 表 é" IS 'it''s a "comment"; with
\.
COPY public.fake (a) FROM stdin;
and \backslash';
COMMENT ON COLUMN "Odd ""Schema"".x é"."Ta.ble ""q"" '1' ; $$ \ 表 é"."Col ""a"".b" IS E'c''o"l\\u\tm\nn';

-- ---------------------------------------------------------------- many types
CREATE TABLE public.kinds (
  id uuid PRIMARY KEY, n numeric, f real, d double precision, big bigint, i interval, ts timestamp,
  tz timestamptz, day date, tm timetz, ia integer[], ta text[], j json, jb jsonb, r int4range, mr datemultirange,
  tr tstzrange, bits bit varying, ip inet, net cidr, mac macaddr8, p point, poly polygon, tsv tsvector,
  x xml, m public.mood, ma public.mood[], pr public.pair, pos public.positive, h public.hstore, ch "char",
  fixed character(5), lsn pg_lsn, flag boolean
);
INSERT INTO public.kinds VALUES
  ('00000000-0000-0000-0000-000000000001', 'NaN', 'NaN', 'NaN', 9223372036854775807, '1 year -2 mons +3 days -04:05:06.789',
   'infinity', 'infinity', 'infinity', '23:59:59.999999+14', '[2:4]={1,NULL,3}', ARRAY['a"b', NULL, 'NULL', '', E'\\', '{,}'],
   '{"a" : 1, "a":2,  "\u00e9": "\\."}', '{"a": [1, null, "\\t"], "ü": 1e30}', '[1,)', '{[2020-01-01,2020-02-01),[2021-01-01,)}',
   '[-infinity,infinity]', B'10110', '::1/128', '10.0.0.0/8', '08:00:2b:01:02:03:04:05', '(1e-300,-0)', '((0,0),(1,1),(1,0))',
   $$'it''s':1A,3 word:2$$, '<a b="&lt;">é</a>', 'it''s "fine"', ARRAY[',;\', 'sad']::public.mood[], ROW(E'a"\\,(', 'ok'), 7,
   'a=>NULL, "b c"=>"\"x\\"', 'z', 'ab', '16/B374D848', true),
  ('00000000-0000-0000-0000-000000000002', 'Infinity', '-Infinity', '-0', -9223372036854775808, '-178000000 years',
   '-infinity', '-infinity', '4713-01-01 BC', '00:00-15:59', '{{1,2},{3,4}}', '{}', 'null', 'null', 'empty', '{}', 'empty',
   B'', '192.168.1.5/24', '::/0', '08:00:2b:ff:fe:01:02:03', '(NaN,Infinity)', NULL, '', NULL, 'glücklich', '{}', ROW(NULL, NULL), NULL, '', '',
   '', '0/0', false),
  ('00000000-0000-0000-0000-000000000003', 12345678901234567890123456789012345678901234567890.000000000000000000000000000001,
   1.17549435e-38, 4.9406564584124654e-324, 0, '0', '0044-03-15 12:00:00 BC', '1883-11-18 12:03:57+00', '5874897-12-31', '24:00:00+00',
   NULL, NULL, NULL, '"\ud83d\ude00"', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 1, NULL, NULL, NULL, NULL, NULL);

-- ---------------------------------------------------------------- tables of every kind
CREATE TABLE app.measures (at date NOT NULL, sensor integer, v double precision, PRIMARY KEY (at, sensor)) PARTITION BY RANGE (at);
CREATE TABLE app.measures_2023 PARTITION OF app.measures FOR VALUES FROM ('2023-01-01') TO ('2024-01-01');
CREATE TABLE app.measures_2024 PARTITION OF app.measures FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
CREATE TABLE "Odd ""Schema"".x é"."measures 2025" PARTITION OF app.measures FOR VALUES FROM ('2025-01-01') TO (MAXVALUE);
INSERT INTO app.measures SELECT date '2023-01-01' + i, i % 5, i / 7.0 FROM generate_series(0, 1000) i;
CREATE INDEX ON app.measures (v);

CREATE TABLE public.parent (id integer PRIMARY KEY, what text DEFAULT 'def''ault; "x"');
CREATE TABLE public.child (extra text) INHERITS (public.parent);
INSERT INTO public.parent VALUES (1, 'only parent'), (2, DEFAULT);
INSERT INTO public.child VALUES (3, 'child', 'e'), (4, 'child', NULL), (5, 'child', E'\\.');

CREATE TABLE public.empty_table (a integer, b text);
CREATE TABLE public.no_columns ();
INSERT INTO public.no_columns DEFAULT VALUES;
INSERT INTO public.no_columns DEFAULT VALUES;
INSERT INTO public.no_columns DEFAULT VALUES;
CREATE UNLOGGED TABLE public.unlogged (a integer);
INSERT INTO public.unlogged SELECT generate_series(1, 42);
-- A dropped column leaves a hole in the numbering.
CREATE TABLE public.dropped (a integer, gone text, b text);
INSERT INTO public.dropped VALUES (1, 'gone', 'kept');
ALTER TABLE public.dropped DROP COLUMN gone;

CREATE TABLE public.big_rows (
  id bigint GENERATED ALWAYS AS IDENTITY (START WITH 1000 INCREMENT BY 3) PRIMARY KEY,
  name text NOT NULL, size integer NOT NULL,
  twice integer GENERATED ALWAYS AS (size * 2) STORED
);
INSERT INTO public.big_rows (name, size) SELECT md5(i::text) || E'\t' || i, i FROM generate_series(1, 30000) i;
CREATE INDEX "big rows; by ""name""" ON public.big_rows (lower(name) DESC NULLS LAST) WHERE size > 10;
CREATE STATISTICS public.big_stats (dependencies) ON name, size FROM public.big_rows;

-- Tables that refer to each other, and a check that the old rows do not meet.
CREATE TABLE app.egg (id integer PRIMARY KEY, hen integer);
CREATE TABLE app.hen (id integer PRIMARY KEY, egg integer REFERENCES app.egg DEFERRABLE INITIALLY DEFERRED);
ALTER TABLE app.egg ADD FOREIGN KEY (hen) REFERENCES app.hen;
INSERT INTO app.egg VALUES (1, NULL);
INSERT INTO app.hen VALUES (1, 1);
UPDATE app.egg SET hen = 1;
ALTER TABLE app.egg ADD CONSTRAINT "not ""valid""" CHECK (id > 100) NOT VALID;
CREATE TABLE app.booking (room integer, during tsrange, mail app."e mail", UNIQUE NULLS NOT DISTINCT (room, during));
INSERT INTO app.booking VALUES (1, '[2024-01-01,2024-01-02)', 'o.x@example.org'), (NULL, NULL, 'a@b');

-- ---------------------------------------------------------------- sequences
CREATE SEQUENCE public."Seq ""q""" INCREMENT -7 MINVALUE -1000 MAXVALUE 1000 START 500 CACHE 5 CYCLE;
SELECT nextval('public."Seq ""q"""'), nextval('public."Seq ""q"""') \g /dev/null
CREATE SEQUENCE public.never_called START 17;
CREATE SEQUENCE public.near_end START 9223372036854775800;
CREATE TABLE public.by_default (id smallint GENERATED BY DEFAULT AS IDENTITY, s serial, a bigint DEFAULT nextval('public.near_end'));
INSERT INTO public.by_default (id) VALUES (5), (6);

-- ---------------------------------------------------------------- large objects
CREATE TABLE public.lo_index (id oid PRIMARY KEY, note text);
INSERT INTO public.lo_index
  SELECT lo_from_bytea(0, decode(repeat(md5(i::text), (i * i * 40) % 9000 + 1), 'hex') || '\x005c2e0a'::bytea), 'object ' || i
  FROM generate_series(1, 50) i;
DO $do$
DECLARE o oid;
BEGIN
  SELECT min(id) INTO o FROM public.lo_index;
  EXECUTE format('ALTER LARGE OBJECT %s OWNER TO "odd owner"', o);
  EXECUTE format('GRANT SELECT ON LARGE OBJECT %s TO app_reader', o);
  EXECUTE format('COMMENT ON LARGE OBJECT %s IS %L', o, 'it''s "large"');
END
$do$;

-- ---------------------------------------------------------------- functions, triggers, rules
CREATE FUNCTION public.liar() RETURNS text LANGUAGE plpgsql AS $body$
DECLARE s text;
BEGIN
  s := $x$ nested $$ dollars $$
COPY public.fake (a) FROM stdin;
1	one
\.
-- PostgreSQL database dump complete
\connect nowhere
$x$;
  RETURN s || $$;
--
-- PostgreSQL database dump complete
--
$$;
END
$body$;
COMMENT ON FUNCTION public.liar() IS $c$returns what looks like a dump:
COPY public.fake (a) FROM stdin;
\.
--
-- PostgreSQL database dump complete
--
$c$;
CREATE FUNCTION app."add ""one""; --"("in" integer DEFAULT 41, VARIADIC rest text[] DEFAULT '{}') RETURNS integer
  LANGUAGE sql IMMUTABLE SECURITY DEFINER SET search_path = pg_catalog, "Odd ""Schema"".x é" AS 'SELECT $1 + 1; -- it''s \.';
CREATE FUNCTION public.new_style(a integer) RETURNS integer LANGUAGE sql BEGIN ATOMIC SELECT a * 2; END;
CREATE PROCEDURE app.nothing() LANGUAGE sql AS $$ $$;
CREATE AGGREGATE public.glue(text) (sfunc = textcat, stype = text, initcond = 'a''"\');

CREATE TABLE public.audit (id integer GENERATED ALWAYS AS IDENTITY, what text);
CREATE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql AS $_$
BEGIN
  INSERT INTO public.audit (what) VALUES (TG_TABLE_NAME || ' $$ ' || TG_OP);
  RETURN NULL;
END $_$;
-- If a load fired it, the count in audit would differ from the one at the source.
CREATE TRIGGER "note ""it""" AFTER INSERT OR UPDATE ON public.parent FOR EACH ROW WHEN (new.what <> 'it''s; \.') EXECUTE FUNCTION public.note();
INSERT INTO public.parent VALUES (6, 'audited');
CREATE TRIGGER disabled AFTER DELETE ON public.parent EXECUTE FUNCTION public.note();
ALTER TABLE public.parent DISABLE TRIGGER disabled;
CREATE RULE quiet AS ON DELETE TO public.empty_table DO INSTEAD NOTHING;
CREATE RULE "also ""log""" AS ON INSERT TO public.empty_table WHERE new.a < 0 DO ALSO INSERT INTO public.audit (what) VALUES ('rule; it''s' || new.b);
CREATE FUNCTION public.on_ddl() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN NULL; END';
CREATE EVENT TRIGGER odd_ddl ON ddl_command_end WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION public.on_ddl();

-- ---------------------------------------------------------------- views
CREATE VIEW public."view; 1" AS
  SELECT id, E'back\\slash\ttab''s;\nCOPY public.fake (a) FROM stdin;\n\\.\n' AS lit, 'semi;colon
new line -- no comment /* nor this */' AS "l;2" FROM public.parent WHERE what <> E'\\';
CREATE VIEW app.careful WITH (security_barrier) AS SELECT * FROM public.big_rows WHERE size % 2 = 0 WITH LOCAL CHECK OPTION;
CREATE RECURSIVE VIEW public.counter (n) AS VALUES (1) UNION ALL SELECT n + 1 FROM counter WHERE n < 3;
CREATE MATERIALIZED VIEW public.sums AS SELECT size % 10 AS k, count(*) AS n, sum(size) AS s FROM public.big_rows GROUP BY 1;
CREATE UNIQUE INDEX ON public.sums (k);
REFRESH MATERIALIZED VIEW CONCURRENTLY public.sums;
CREATE MATERIALIZED VIEW app.a_sum_of_sums AS SELECT sum(s) AS total FROM public.sums;
CREATE MATERIALIZED VIEW public.not_filled AS SELECT id FROM public.parent WITH NO DATA;

-- ---------------------------------------------------------------- row level security
CREATE TABLE public.secrets (owner text, v text);
INSERT INTO public.secrets VALUES ('app_reader', 'a'), ('Rolle é "x"', 'b'), ('nobody', 'c');
ALTER TABLE public.secrets OWNER TO "odd owner";
ALTER TABLE public.secrets ENABLE ROW LEVEL SECURITY;
ALTER TABLE public.secrets FORCE ROW LEVEL SECURITY;
CREATE POLICY "own; ""rows""" ON public.secrets FOR SELECT TO app_reader, "Rolle é ""x""" USING (owner = current_user AND v <> 'it''s');
CREATE POLICY "not these" ON public.secrets AS RESTRICTIVE FOR ALL TO PUBLIC USING (v <> E'\\.') WITH CHECK (length(v) < 100);

-- ---------------------------------------------------------------- grants, publication
GRANT USAGE ON SCHEMA app, "Odd ""Schema"".x é" TO app_group;
GRANT SELECT (id, note), UPDATE (note) ON public.texts TO app_reader;
GRANT ALL ON public.big_rows TO "Rolle é ""x""" WITH GRANT OPTION;
GRANT SELECT ON ALL TABLES IN SCHEMA app TO app_group;
GRANT USAGE ON SEQUENCE public."Seq ""q""" TO app_group;
REVOKE EXECUTE ON FUNCTION public.liar() FROM PUBLIC;
GRANT USAGE ON TYPE public.mood TO app_group;
ALTER DEFAULT PRIVILEGES FOR ROLE "odd owner" IN SCHEMA app GRANT SELECT ON TABLES TO app_group;
ALTER DEFAULT PRIVILEGES FOR ROLE "Rolle é ""x""" REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;
ALTER TABLE app.hen OWNER TO "odd owner";
CREATE PUBLICATION "pub ""é""" FOR TABLE public.texts (id, note) WHERE (id > 3), app.measures WITH (publish = 'insert, update');
CREATE PUBLICATION pub_schema FOR TABLES IN SCHEMA "Odd ""Schema"".x é";
COMMENT ON PUBLICATION pub_schema IS 'it''s "published"';
ANALYZE;
