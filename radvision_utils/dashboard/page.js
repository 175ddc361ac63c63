// The page works without this script; it adds steps, sort, filter, window and keys, and shows their controls.
'use strict';
{
  const byId = id => document.getElementById(id);
  const root = document.documentElement, list = byId('cards'), filters = byId('filters');
  const all = [...list.children];
  const AT_ONCE = 12;  // cards, as in page.py; more come when one is at their end
  const WINDOWS = ['full', 'lung', 'soft tissue', 'bone'];  // as in page.css
  const STRENGTHS = ['off', 'faint', 'medium', 'strong'];  // as in radiograph.py
  let shown = all, at = -1, first = 0, last = AT_ONCE, hidden = '', hiddenBelow = 0;
  const asked = new Map(all.map(card => [card, {
    ranks: card.dataset.ranks.split(' ').map(Number),
    verdicts: JSON.parse(card.dataset.verdicts),
    flags: JSON.parse(card.dataset.flags),
  }]));
  for (const card of all) card.tabIndex = -1;

  const chosen = id => byId(id) ? byId(id).value : '';
  function text(card, denial) {  // what is said of the study but for what is denied; of a denial, all its words
    if (!denial) return card.dataset.said;
    const known = asked.get(card);
    known.words ??= [...card.querySelectorAll('.rv-head, .rv-texts')].map(e => e.textContent).join(' ').toLowerCase();
    return known.words;
  }
  function fits(card) {
    const observation = chosen('observation'), verdict = chosen('verdict'), flag = chosen('flag');
    const search = chosen('search').trim().toLowerCase(), { flags, verdicts } = asked.get(card);
    const judged = ([name, found]) => (!observation || name === observation) && (!verdict || found === verdict);
    return (!flag || flags.includes(flag)) && (!(observation || verdict) || verdicts.some(judged))
      && (!search || text(card, /^(no|not|without) /.test(search)).includes(search));
  }
  function arrange() {
    const order = Number(chosen('order'));
    hideSentences();
    all.sort((a, b) => asked.get(a).ranks[order] - asked.get(b).ranks[order]);
    shown = all.filter(fits);
    list.append(...all);
    unroll(0, AT_ONCE);
    mark(-1);
  }
  function unroll(from, to) {  // those shown of the chosen studies
    first = Math.max(from, 0);
    last = Math.min(to, shown.length);
    for (const card of all) card.hidden = true;
    for (const card of shown.slice(first, last)) card.hidden = false;
    byId('earlier').hidden = first === 0;
    byId('more').hidden = last === shown.length;
  }

  function hideSentences() {  // below the chosen agreement; each section says how many
    const least = Number(chosen('least'));
    if (least === hiddenBelow) return;
    hiddenBelow = least;
    const below = `hidden below ${least} of ${byId('least').dataset.samples}`;
    const told = count => count ? `${count} sentence${count === 1 ? '' : 's'} ${below}` : '';
    let count = 0;
    for (const sentences of list.querySelectorAll('.rv-sentences')) {
      let here = 0;
      for (const sentence of sentences.children) {
        sentence.hidden = Number(sentence.dataset.agreement) < least;  // without an agreement: NaN, never hidden
        here += sentence.hidden;
      }
      count += here;
      sentences.nextElementSibling.textContent = told(here);
    }
    hidden = told(count);
  }
  function mark(index) {
    at = index;
    const where = byId('where'), total = shown.length === all.length ? '' : ` (of ${all.length})`;
    where.textContent = (at < 0 ? '' : `${at + 1} of `) + `${shown.length || 'no'} ${where.dataset.things}`
      + (shown.length ? '' : ' match') + total + (hidden && `; ${hidden}`);
    byId('choose').setAttribute('aria-pressed', at >= 0 && shown[at].classList.contains('chosen'));
  }
  function show(index) {
    document.querySelector('.studies').open = false;
    shown[at]?.classList.remove('revealed');
    if (index < first || index >= last) unroll(index - 1, index + AT_ONCE);
    mark(index);
    shown[at].focus({ preventScroll: true });
    shown[at].scrollIntoView({ block: 'start' });
  }
  function go(step) {
    if (!shown.length) return;
    show(Math.min(Math.max(at + step, 0), shown.length - 1));
    history.replaceState(null, '', '#' + shown[at].id);
  }
  function follow() {
    const card = byId(location.hash.slice(1)), where = byId('where');
    if (shown.includes(card)) {
      show(shown.indexOf(card));
    } else if (all.includes(card)) {
      filters.reset();
      setTimeout(follow);  // once the reset has arranged all
    } else if (location.hash.startsWith('#uid=')) {
      const things = `${all.length} ${where.dataset.things}`;
      where.textContent = `There is no ${location.hash.slice(5)} on this page; it shows ${things}`;
      where.scrollIntoView({ block: 'center' });
    }
  }

  function invert() {
    byId('invert').setAttribute('aria-pressed', root.classList.toggle('inverted'));
  }
  function nextWindow() {
    root.dataset.window = WINDOWS[(WINDOWS.indexOf(root.dataset.window || 'full') + 1) % WINDOWS.length];
    byId('window').textContent = 'Window: ' + root.dataset.window;
  }
  function strengthen(strength) {  // one switch for all cards
    for (const button of list.querySelectorAll(`.rv-strength [value=${strength}]`)) button.checked = true;
    byId('evidence').textContent = 'Evidence: ' + strength;
  }
  function nextStrength() {
    const button = byId('evidence');
    if (button) strengthen(STRENGTHS[(STRENGTHS.indexOf(button.textContent.slice(10)) + 1) % STRENGTHS.length]);
  }
  function choose() {
    if (at < 0) go(1);
    if (at < 0) return;
    shown[at].classList.toggle('chosen');
    mark(at);
  }
  function veil() {
    byId('veil').setAttribute('aria-pressed', root.classList.toggle('veiled'));
    for (const card of all) card.classList.remove('revealed');
  }
  function reveal() {
    if (root.classList.contains('veiled') && at >= 0) shown[at].classList.toggle('revealed');
    else veil();
  }
  function help() { if (!byId('keys').open) byId('keys').showModal(); }

  const KEYS = {
    ArrowLeft: () => go(-1), ArrowRight: () => go(1),
    i: invert, w: nextWindow, e: nextStrength, r: reveal, p: choose, '?': help,
    '/': () => { byId('search').focus(); byId('search').select(); },
  };
  document.addEventListener('keydown', event => {
    const target = event.target;
    if (event.altKey || event.ctrlKey || event.metaKey || byId('keys').open) return;
    if (event.key === 'Escape' && filters.contains(target)) { target.blur(); return; }
    const field = /^(INPUT|SELECT|TEXTAREA)$/.test(target.tagName);
    if (field && (target.type !== 'radio' || /^Arrow/.test(event.key)) || !KEYS[event.key]) return;
    event.preventDefault();
    KEYS[event.key]();
  });
  const BUTTONS = {
    previous: KEYS.ArrowLeft, next: KEYS.ArrowRight, invert, window: nextWindow, evidence: nextStrength, veil, choose,
    help, earlier: () => unroll(first - AT_ONCE, last), more: () => unroll(first, last + AT_ONCE),
  };
  for (const [id, act] of Object.entries(BUTTONS)) byId(id)?.addEventListener('click', act);
  new IntersectionObserver(met => {
    if (met[0].isIntersecting) unroll(first, last + AT_ONCE);
  }, { rootMargin: '600px' }).observe(byId('more'));
  list.addEventListener('change', event => { if (event.target.type === 'radio') strengthen(event.target.value); });
  filters.addEventListener('input', event => {
    if (event.target.id !== 'least') { arrange(); return; }
    hideSentences();  // the study at hand stays
    mark(at);
  });
  filters.addEventListener('submit', event => event.preventDefault());
  filters.addEventListener('reset', () => setTimeout(arrange));
  window.addEventListener('hashchange', follow);
  filters.hidden = byId('bar').hidden = false;
  function makeRoom() {  // below the bar, which stays in sight and takes one line or several
    const nav = byId('bar').parentElement, stays = getComputedStyle(nav).position === 'sticky';
    root.style.setProperty('--bar', stays ? nav.offsetHeight + 8 + 'px' : '8px');
  }
  makeRoom();
  window.addEventListener('resize', makeRoom);
  filters.reset();  // a reload keeps what was chosen, but not what is shown
  setTimeout(follow);
}
