-- What a run's provider calls cost by the configured prices, in millionths of the currency unit.
ALTER TABLE runs ADD COLUMN cost_micros INTEGER NOT NULL DEFAULT 0;
