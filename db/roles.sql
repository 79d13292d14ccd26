-- Roles of a PostgreSQL ledger, each with the rights it needs and no other. Run it as the schema's owner, after every
-- `python -m db.migrate`; it may be run again:
--
--     psql --set ON_ERROR_STOP=1 --single-transaction --file db/roles.sql "$OWNER_URL"
--
-- The roles cannot log in; give them to logins of your own: GRANT lesion_worker TO gpu_host_1;
--   lesion_worker    workers and the feeder: claims, verdicts; sees no patient reference and changes no verdict
--   lesion_trainer   training workers: read confirmed diagnoses, register models and promote one behind the gate
--   lesion_producer  the lesion-screen command: loads, controls and erases batches; only appends to the audit trail
--   lesion_reader    dashboards: verdicts and counts, with age, sex and site, but nothing that names a patient or file;
--                    the views v_worklist and v_batch_summary have neither
-- The owner alone migrates the schema, registers the shipped model, and promotes or rolls back by hand.

DO $$
DECLARE
    role_name text;
BEGIN
    FOREACH role_name IN ARRAY ARRAY['lesion_worker', 'lesion_trainer', 'lesion_producer', 'lesion_reader'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role_name) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', role_name);
        END IF;
    END LOOP;
END
$$;

REVOKE ALL ON ALL TABLES IN SCHEMA public FROM PUBLIC, lesion_worker, lesion_trainer, lesion_producer, lesion_reader;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA public FROM PUBLIC, lesion_worker, lesion_trainer, lesion_producer, lesion_reader;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO lesion_worker, lesion_trainer, lesion_producer, lesion_reader;

GRANT SELECT ON alembic_version TO lesion_worker, lesion_trainer, lesion_producer, lesion_reader;

-- The row lock of a claim needs the right to update a column.
GRANT SELECT, UPDATE (touched_at) ON batch TO lesion_worker;
GRANT SELECT, UPDATE (
    state, attempt, crashes, lease_until, worker, rung_at, recorded_at, suspect_item_id,
    open_count, done_count, referred_count, rejected_count, quarantined_count
) ON chunk TO lesion_worker;
GRANT SELECT (
    id, batch_id, chunk_id, path, frame, size, mtime_ns, age, sex, localization,
    state, reason, image_digest, input_digest, marks
), UPDATE (state, reason, image_digest, input_digest, marks) ON item TO lesion_worker;
GRANT SELECT, INSERT ON result TO lesion_worker;
GRANT SELECT ON model_version, training_run TO lesion_worker;
GRANT SELECT, INSERT, UPDATE, DELETE ON lease, device TO lesion_worker;
GRANT SELECT, INSERT ON drift TO lesion_worker;
GRANT USAGE ON SEQUENCE result_id_seq TO lesion_worker;

GRANT SELECT (id, source) ON batch TO lesion_trainer;
GRANT SELECT (id, batch_id, path, frame, image_digest, lesion_id, age, sex, localization) ON item TO lesion_trainer;
GRANT SELECT (id, item_id, dx, dx_type, created_at) ON label TO lesion_trainer;
GRANT SELECT, INSERT ON model_version, training_run, run_event, audit TO lesion_trainer;
GRANT UPDATE (state) ON model_version TO lesion_trainer;
GRANT UPDATE (state, attempt, crashes, progress, heartbeat, model_digest, gate) ON training_run TO lesion_trainer;
GRANT USAGE ON SEQUENCE training_run_id_seq, run_event_id_seq, audit_id_seq TO lesion_trainer;

GRANT SELECT, INSERT, UPDATE, DELETE ON batch, chunk, item TO lesion_producer;
GRANT SELECT, INSERT, DELETE ON label TO lesion_producer;
GRANT SELECT, DELETE ON result TO lesion_producer;
GRANT SELECT ON model_version, lease TO lesion_producer;
GRANT SELECT, UPDATE (accepted), DELETE ON drift TO lesion_producer;
GRANT SELECT, INSERT ON training_run, run_event, audit TO lesion_producer;
GRANT UPDATE (state) ON training_run TO lesion_producer;
GRANT USAGE ON SEQUENCE batch_id_seq, chunk_id_seq, item_id_seq, label_id_seq, audit_id_seq TO lesion_producer;
GRANT USAGE ON SEQUENCE training_run_id_seq, run_event_id_seq TO lesion_producer;

GRANT SELECT (id, state, priority, model_digest, created_at, opened_at) ON batch TO lesion_reader;
GRANT SELECT ON chunk, result, drift, model_version, training_run, run_event, lease, device TO lesion_reader;
GRANT SELECT (id, item_id, dx, dx_type, labelled_on) ON label TO lesion_reader;
GRANT SELECT (
    id, batch_id, chunk_id, age, sex, localization, label, state, reason, image_digest, input_digest
) ON item TO lesion_reader;

-- A view works with its owner's rights, so it must not have a column that its readers may not see.
GRANT SELECT ON v_worklist, v_batch_summary TO lesion_producer, lesion_reader;
