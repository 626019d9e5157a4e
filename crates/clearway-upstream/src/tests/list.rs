//! The list of faults that calls to a provider must survive, and where each one is tested.
//!
//! Every number has its expected outcome and the tests that play it, by file and name; a test that is
//! renamed or removed is missed here. [`SOCKETS`] says which of them play it over real sockets and in
//! real time, [`NOT_ON_SOCKETS`] why some are not played there.

use std::path::Path;

/// Number, fault, expected outcome, tests.
type Line = (u32, &'static str, &'static str, &'static [&'static str]);

/// Files: `u` this crate's tests, `e` its embeddings, `i` the binary's tests, `n` the engine's.
const LIST: &[Line] = &[
    (
        1,
        "429 with a hint, once",
        "waited for, then answered",
        &["u/retries faults_that_happen_once"],
    ),
    (
        2,
        "429 for ever",
        "three attempts, a fallback answers",
        &[
            "u/retries faults_with_a_fallback",
            "u/retries backoffs_of_calls_that_failed_together_are_spread",
        ],
    ),
    (
        3,
        "429 with an hour as hint",
        "no sleep; refused at once with the time, the key rests",
        &[
            "u/retries faults_that_stay",
            "u/retries a_hint_is_waited_for_and_shown_but_never_beyond_the_deadline",
        ],
    ),
    (
        4,
        "no credit left",
        "not asked again for ten minutes, `quota_exhausted`",
        &["u/retries an_account_without_credit_is_left_alone_for_ten_minutes"],
    ),
    (
        5,
        "hints of every spelling",
        "read or ignored, never a panic",
        &["u/faults the_whole_list", "u/codec/failure hints_in_words_and_windows"],
    ),
    (
        6,
        "500 once, 503 for ever",
        "asked again, or a fallback",
        &["u/retries faults_that_happen_once", "u/retries faults_with_a_fallback"],
    ),
    (
        7,
        "reset before the head",
        "run again once",
        &[
            "u/connections a_race_on_a_reused_connection_is_run_again",
            "u/retries faults_that_happen_once",
        ],
    ),
    (
        8,
        "idle connections closed at random",
        "never noticed",
        &[
            "u/retries connections_that_close_at_random_are_never_noticed",
            "u/connections a_provider_that_closes_idle_connections",
        ],
    ),
    (
        9,
        "accepts and never answers",
        "another route, or `headers_timeout` in time",
        &[
            "u/retries a_silent_provider_is_asked_three_times_at_most_and_the_deadline_holds",
            "u/embeddings silence_ends_after_eight_seconds_and_a_leaver_closes_the_connection",
        ],
    ),
    (
        10,
        "no route, no TLS, no name",
        "ended in five seconds, the endpoint's breaker opens",
        &[
            "u/retries lines_that_lead_nowhere_end_in_five_seconds_and_open_the_breaker_of_the_endpoint",
        ],
    ),
    (
        11,
        "does not read the request",
        "`send_timeout`",
        &["u/streams a_provider_that_does_not_read"],
    ),
    (
        12,
        "a late first token",
        "waited for up to the limit",
        &[
            "u/streams slow_headers_and_a_slow_first_token_are_waited_for",
            "u/streams headers_at_once_and_nothing_else",
        ],
    ),
    (
        13,
        "a role, pings, then an error",
        "as if nothing had come",
        &["u/retries faults_that_happen_once"],
    ),
    (
        14,
        "a stall after some output",
        "`stream_idle`; begun anew where the model says so",
        &["u/streams a_stall_after_output", "u/routes what_breaks_after_output_by_commit_mode"],
    ),
    (15, "a stall with comments", "`stream_stalled`", &["u/streams a_stall_with_comments"]),
    (16, "a minute of thinking", "succeeds", &["u/streams a_model_that_reasons_may_take_a_minute"]),
    (
        17,
        "a drip",
        "the deadline ends it, or the floor of its rate",
        &[
            "u/streams a_drip_ends_at_the_deadline",
            "u/streams an_answer_below_the_floor_is_given_up_after_five_seconds",
            "i/deadline of_a_provider_that_drips",
        ],
    ),
    (
        18,
        "cut in the middle",
        "never a success",
        &[
            "u/streams cut_answers_are_never_whole",
            "i/provider a_part_is_never_taken_for_the_whole",
        ],
    ),
    (19, "no [DONE]", "a finish reason is enough", &["u/streams a_finish_reason_is_enough"]),
    (
        20,
        "[DONE], and the line stays open",
        "done at once",
        &[
            "u/streams done_after_output_is_enough",
            "u/connections an_answer_that_ends_late_does_not_cost_its_connection",
        ],
    ),
    (
        21,
        "odd bytes",
        "understood, or `stream_malformed`",
        &[
            "u/streams malformed_events_are_not_skipped",
            "u/streams one_byte_at_a_time",
            "u/sse cuts_do_not_matter",
            "i/provider odd_bytes_are_understood",
        ],
    ),
    (
        22,
        "200 with something else",
        "its own error",
        &["u/streams good_statuses_with_bad_answers", "u/streams answers_without_an_answer"],
    ),
    (
        23,
        "endless events and lines",
        "`stream_too_large`",
        &["u/streams huge_events_and_endless_lines"],
    ),
    (
        24,
        "endless error bodies",
        "the status stands, after two seconds at most",
        &["u/streams endless_and_stalled_error_bodies"],
    ),
    (
        25,
        "faults of the request, key or model",
        "one attempt, the right code",
        &["u/retries faults_that_stay", "u/retries keys_take_over_from_each_other"],
    ),
    (
        26,
        "a fallback refuses a begun answer",
        "asked from the start",
        &["u/routes who_refuses_a_begun_answer_is_asked_from_the_start"],
    ),
    (
        27,
        "out for a minute",
        "served elsewhere, few attempts, soon back",
        &["u/drills an_outage_of_a_minute", "u/drills an_outage_without_a_fallback_is_no_storm"],
    ),
    (
        28,
        "comes and goes",
        "few attempts, a breaker that backs off",
        &["u/drills a_provider_that_comes_and_goes"],
    ),
    (
        29,
        "a probe that leaves or is refused",
        "no verdict",
        &["u/drills a_probe_that_leaves_or_is_refused_says_nothing"],
    ),
    (
        30,
        "a late success",
        "closes nothing",
        &["u/drills a_slow_success_of_before_does_not_close_the_breaker"],
    ),
    (
        31,
        "the client leaves, at every stage",
        "the provider sees it at once",
        &[
            "u/cancel while_dialling",
            "u/cancel before_the_first_token",
            "u/cancel in_the_middle_of_the_answer",
            "u/drills nothing_begins_after_a_call_was_left",
            "i/cancel before_the_first_token",
        ],
    ),
    (
        32,
        "the client of a whole answer leaves",
        "the same",
        &[
            "u/cancel while_waiting_for_the_answer",
            "i/cancel a_client_that_leaves_takes_the_run_along_when_it_said_so",
        ],
    ),
    (
        33,
        "five hundred come and vanish",
        "nothing is left",
        &["u/limits five_hundred_callers_come_and_go"],
    ),
    (
        34,
        "a slow reader",
        "the provider's slot is not held for it",
        &[
            "i/stream a_slow_reader_slows_nobody",
            "u/streams a_reader_that_is_away_does_not_count_against_the_provider",
        ],
    ),
    (
        35,
        "5, 50, 500 at a limit",
        "in order, the rest refused with a time",
        &[
            "u/drills a_crowd_is_served_together_where_the_limit_allows",
            "u/limits the_slot_is_held_until_the_stream_ends_and_granted_in_order",
        ],
    ),
    (
        36,
        "a burst",
        "served in time or refused at once",
        &["u/drills a_burst_is_served_in_time_or_refused_at_once"],
    ),
    (37, "requests per minute", "never more", &["u/drills requests_per_minute_are_never_exceeded"]),
    (
        38,
        "tokens per minute",
        "never more, and a huge one gets its turn",
        &["u/drills tokens_per_minute_are_never_exceeded_and_a_huge_one_gets_its_turn"],
    ),
    (39, "a hidden cap", "found", &["u/drills a_hidden_cap_is_found"]),
    // Providers are spoken to in HTTP/1.1 only, so none of it can happen inside a call.
    (
        40,
        "HTTP/2: few streams, GOAWAY, no PING",
        "not spoken, and told at once",
        &["u/sockets_lines a_provider_that_speaks_another_http_is_told_at_once"],
    ),
    (
        41,
        "vectors that do not fit",
        "`bad_vectors`, or put in order",
        &[
            "u/embeddings bad_answers_are_named_and_never_kept",
            "u/embeddings a_batch_is_one_request_and_its_connection_is_kept",
        ],
    ),
    (
        42,
        "one poisonous text",
        "fails alone",
        &[
            "u/embeddings a_poisonous_text_fails_alone_at_a_real_provider",
            "e/tests one_poisonous_text_fails_alone",
        ],
    ),
    (
        43,
        "very many texts",
        "split within all caps",
        &["e/tests many_texts_are_split_within_all_caps"],
    ),
    (
        44,
        "a thousand with one question",
        "one request",
        &[
            "e/tests a_thousand_callers_with_one_question_are_one_call",
            "e/tests work_outlives_the_one_who_began_it_but_not_the_last_one",
        ],
    ),
    (
        45,
        "a query beside bulk work",
        "does not wait behind it",
        &["e/tests a_query_does_not_wait_behind_bulk_work"],
    ),
    (
        46,
        "two attempts side by side",
        "one result, booked once, the loser closed",
        &["u/embeddings of_two_attempts_side_by_side_the_first_good_one_counts"],
    ),
    (
        47,
        "keys dead, resting and fine",
        "the fine one, soon",
        &["u/retries keys_take_over_from_each_other"],
    ),
    (
        48,
        "the configuration changes meanwhile",
        "streams finish, new calls use the new one",
        &[
            "u/reload streams_finish_and_new_calls_take_what_is_in_force",
            "u/reload what_is_known_goes_with_the_place_that_it_is_about",
            "i/dev a_provider_that_is_gone_finishes_what_it_began",
            "i/dev a_changed_prompt_is_used_by_the_next_turn",
        ],
    ),
    (
        49,
        "SIGTERM under load",
        "finished or handed back, and said so",
        &[
            "i/crash an_orderly_stop_hands_back_what_is_not_done",
            "i/crash an_orderly_stop_lets_short_runs_finish",
        ],
    ),
    (
        50,
        "no thread to spare",
        "works on, or says so at the start",
        &["i/load a_server_at_the_limit_of_threads_works_on"],
    ),
    (
        51,
        "a clock that jumps",
        "hints by the provider's clock, timers by none",
        &["u/codec/failure retry_dates_are_judged_by_the_providers_clock"],
    ),
    (
        52,
        "a panic below",
        "an error, and the next call works",
        &[
            "e/tests a_panic_below_is_an_error_and_the_next_call_works",
            "n/graphs a_panic_or_a_hang_ends_its_own_run_only",
        ],
    ),
    (
        53,
        "a short deadline",
        "kept, in every phase",
        &["u/streams deadlines_are_exact_in_every_phase"],
    ),
    (
        54,
        "failed attempts",
        "visible, and paid for once",
        &["u/routes failed_attempts_are_visible_and_paid_for_once"],
    ),
    (55, "half a tool call", "never its end", &["u/routes half_a_tool_call_never_reaches_its_end"]),
    (56, "all of these at random", "in time, and nothing left", &["u/fuzz random_schedules"]),
];

/// Who plays which of them over real sockets, against the simulator or a server of the test's own.
const SOCKETS: &[(&str, &[u32])] = &[
    ("u/sockets rate_limits_and_empty_accounts", &[1, 2, 3, 4, 5]),
    ("u/sockets failing_and_breaking_connections", &[6, 7, 8]),
    ("u/sockets silence_and_slowness", &[9, 12, 14, 15, 16, 17, 53]),
    ("u/sockets answers_that_break_off", &[13, 18, 19, 20, 26, 54, 55]),
    ("u/sockets odd_bytes_and_answers_that_are_none", &[21, 22, 24]),
    ("u/sockets what_is_wrong_with_the_request_is_asked_once", &[25]),
    ("u/sockets a_provider_that_does_not_read_its_request", &[11]),
    ("u/sockets endless_events_cost_no_memory", &[23]),
    ("u/sockets_lines no_answer_below_http_ends_at_the_connect_limit", &[10]),
    ("u/sockets_lines refusals_below_http_are_told_at_once", &[10]),
    ("u/sockets_lines a_provider_that_speaks_another_http_is_told_at_once", &[40]),
    ("u/sockets_lines whoever_leaves_is_gone_at_every_stage", &[31, 32]),
    ("u/sockets_lines whoever_leaves_while_dialling_closes_the_socket", &[31]),
    ("u/sockets_lines five_hundred_that_vanish_leave_nothing", &[33]),
    ("u/sockets_lines the_good_key_takes_over_within_a_second", &[47]),
    ("u/sockets_lines vectors_that_do_not_fit_and_providers_that_are_silent", &[9, 41]),
    ("u/embeddings a_poisonous_text_fails_alone_at_a_real_provider", &[42]),
    ("u/sockets_lines many_texts_leave_within_all_caps", &[43]),
    ("u/sockets_lines a_thousand_with_one_question_are_one_request", &[44]),
    ("u/sockets_lines a_slow_request_is_sent_again_and_the_loser_closed", &[46]),
    ("u/sockets_crowds an_outage_is_noticed_by_five_attempts_and_over_soon", &[27]),
    ("u/sockets_crowds a_flapping_provider_is_left_alone_ever_longer", &[28]),
    ("u/sockets_crowds probes_that_say_nothing_and_successes_that_come_late", &[29, 30]),
    ("u/sockets_crowds crowds_are_served_in_order_and_the_rest_refused_with_a_time", &[35]),
    ("u/sockets_crowds a_burst_is_served_in_time_or_refused_at_once", &[36]),
    ("u/sockets_crowds rates_per_minute_are_kept", &[37, 38]),
    ("u/sockets_crowds a_hidden_cap_costs_nobody_an_answer", &[39]),
    ("u/sockets_crowds queries_do_not_wait_behind_bulk_work", &[45]),
    ("i/stream a_slow_reader_slows_nobody", &[34]),
    ("i/dev a_provider_that_is_gone_finishes_what_it_began", &[48]),
    ("i/crash an_orderly_stop_hands_back_what_is_not_done", &[49]),
    ("i/load a_server_at_the_limit_of_threads_works_on", &[50]),
];

/// What has no part in which a socket matters, or cannot be brought about at will.
const NOT_ON_SOCKETS: &[(&[u32], &str)] = &[
    (&[51], "timers have no wall clock to be set; dates in headers are pure"),
    (&[52], "the simulator cannot make our decoder panic; a panic is thrown in memory"),
    (&[56], "a hundred thousand schedules need paused time"),
];

fn file(of: &str) -> String {
    let (kind, name) = of.split_once('/').expect("a kind");
    match kind {
        "u" if ["sse", "codec/failure"].contains(&name) => format!("src/{name}/tests.rs"),
        "u" => format!("src/tests/{name}.rs"),
        "e" => format!("src/embed/{name}.rs"),
        "i" => format!("../clearway-cli/tests/it/{name}.rs"),
        "n" => format!("../clearway-engine/tests/it/{name}.rs"),
        other => panic!("{other}"),
    }
}

#[test]
fn every_fault_has_its_test() {
    let numbers: Vec<u32> = LIST.iter().map(|line| line.0).collect();
    assert_eq!(numbers, (1..=56).collect::<Vec<_>>());
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (number, fault, expected, tests) in LIST {
        assert!(!tests.is_empty(), "{number}, {fault} ({expected}): no test");
        let on_sockets = SOCKETS.iter().filter(|(_, numbers)| numbers.contains(number));
        let on_sockets: Vec<&str> = on_sockets.map(|(test, _)| *test).collect();
        let why_not = NOT_ON_SOCKETS.iter().any(|(numbers, _)| numbers.contains(number));
        assert!(on_sockets.is_empty() == why_not, "{number}, {fault}: on sockets or why not");
        for test in tests.iter().chain(&on_sockets) {
            let (of, name) = test.split_once(' ').expect("a file and a name");
            let text = std::fs::read_to_string(here.join(file(of))).expect(of);
            assert!(text.contains(&format!("fn {name}(")), "{number}, {fault}: no {name} in {of}");
        }
    }
}
