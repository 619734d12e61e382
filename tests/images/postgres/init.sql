CREATE TABLE fruit (name text PRIMARY KEY, amount int CHECK (amount >= 0));
INSERT INTO fruit VALUES ('apple', 3), ('pear', 4);
