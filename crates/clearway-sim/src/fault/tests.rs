use super::*;

#[test]
fn table_is_in_the_order_of_the_enum_and_names_are_unique() {
    for (index, about) in TABLE.iter().enumerate() {
        assert_eq!(about.fault as usize, index, "{}", about.name);
        assert_eq!(about.fault.about().name, about.name);
        assert!(!about.line.is_empty() && !about.line.ends_with('.'), "{}", about.name);
    }
    let mut names: Vec<_> = Fault::ALL.iter().map(|fault| fault.name()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), Fault::ALL.len());
}

#[test]
fn groups_are_contiguous_and_complete() {
    let mut groups: Vec<_> = TABLE.iter().map(|about| about.group).collect();
    groups.dedup();
    assert_eq!(groups, Group::ALL);
    assert!(Group::ALL.iter().all(|group| !group.title().is_empty()));
}

#[test]
fn names_round_trip_with_and_without_a_value() {
    for fault in Fault::ALL {
        assert_eq!(fault.to_string().parse(), Ok(fault));
        let spec = FaultSpec::from(fault);
        assert_eq!(spec.to_string().parse(), Ok(spec));
        let valued = FaultSpec { fault, value: Some(7) };
        let parsed = valued.to_string().parse::<FaultSpec>();
        match fault.about().parameter {
            Some(_) => assert_eq!(parsed, Ok(valued)),
            None => assert_eq!(parsed, Err(ParseError::NoParameter { fault })),
        }
    }
}

#[test]
fn spelling_is_forgiven_where_it_is_unambiguous() {
    assert_eq!(" Cut-RST ".parse(), Ok(Fault::CutRst));
    assert_eq!("stall: 3 ".parse(), Ok(FaultSpec { fault: Fault::Stall, value: Some(3) }));
}

#[test]
fn errors_say_what_to_write_instead() {
    let error = |text: &str| text.parse::<FaultSpec>().unwrap_err().to_string();
    assert_eq!(error("stal"), "unknown fault: stal, did you mean stall?");
    assert_eq!(error("zzz"), "unknown fault: zzz");
    assert_eq!(error("bom:3"), "fault bom takes no value");
    assert_eq!(error("ttft:soon"), "fault ttft takes a whole number of ms, at most 86400000: soon");
    assert_eq!(
        error("stall:-1"),
        "fault stall takes a whole number of tokens, at most 1000000: -1"
    );
    assert_eq!(
        error("ttft:86400001"),
        "fault ttft takes a whole number of ms, at most 86400000: 86400001"
    );
}

#[test]
fn amounts_fall_back_to_the_default_and_know_their_unit() {
    let spec = |text: &str| text.parse::<FaultSpec>().unwrap();
    assert_eq!(spec("stall").amount(), 20);
    assert_eq!(spec("stall:4").amount(), 4);
    assert_eq!(spec("bom").amount(), 0);
    assert_eq!(spec("reasoning:3").duration(), Duration::from_secs(3));
    assert_eq!(spec("ttft:3").duration(), Duration::from_millis(3));
}
